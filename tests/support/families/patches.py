"""Patches by hand for any pipeline, and what stock diffusers makes of them as LoRAs."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch

from erasers import Patch
from erasers.files.hashing import tensor_hash
from erasers.files.tensors import FORMAT
from erasers.models.ports import text_ports

# Where text enters, and the layers that the text passes before and after.
EMBEDDER, POOLED, ADDED = r"^context_embedder$", r"text_embedder\.linear_[12]$", r"attn\.add_[kv]_proj$"
CAPTION, CROSS, SINGLE = r"^caption_projection\.linear", r"attn2\.to_[kv]$", r"^single_.*attn\.to_[kv]$"
TEXT = {
    "sd1": CROSS,
    "sd2": CROSS,
    "animatediff": r"\.attentions\..*attn2\.to_[kv]$",
    "sdxl": rf"{CROSS}|^add_embedding\.linear",
    "sd3": rf"{EMBEDDER}|{POOLED}|{ADDED}",
    "sd35": rf"{EMBEDDER}|{POOLED}|{ADDED}",
    "flux": rf"{EMBEDDER}|{POOLED}|{ADDED}|{SINGLE}",
    "chroma": rf"{EMBEDDER}|{ADDED}|{SINGLE}",
    "auraflow": rf"{EMBEDDER}|{ADDED}|{SINGLE}",
    "pixart": rf"{CAPTION}|{CROSS}",
    "pixart-sigma": rf"{CAPTION}|{CROSS}",
    "sana": rf"{CAPTION}|{CROSS}",
    "wan": rf"{POOLED}|{CROSS}",
    "hunyuandit": rf"^text_embedder\.linear|{CROSS}",
    "flux2": rf"{EMBEDDER}|{ADDED}|to_qkv_mlp_proj$",
    "qwenimage": rf"^txt_in$|{ADDED}",
    "luminanext": rf"caption_embedder\.1$|{CROSS}",
    "lumina2": r"caption_embedder\.1$|(context_refiner|layers)\.\d+\.attn\.to_[kv]$",
    "zimage": r"^cap_embedder\.1$|^(context_refiner|layers)\.\d+\.attention\.to_[kv]$",
    "cogview4": r"^patch_embed\.text_proj$|attn1\.to_[kv]$",
    "prx": r"^txt_in$|txt_kv_proj$",
}


def layers(pipe: Any, part: str, pattern: str) -> list[str]:
    """The linear layers of a component whose names fit."""
    modules = getattr(pipe, part).named_modules()
    return [
        f"{part}.{path}" for path, module in modules if isinstance(module, torch.nn.Linear) and re.search(pattern, path)
    ]


def weight(pipe: Any, parameter: str) -> torch.Tensor:
    part, _, path = parameter.partition(".")
    return getattr(pipe, part).get_parameter(path).data


def hand_patch(pipe: Any, names: list[str], scale: float = 0.1, **more: torch.Tensor) -> Patch:
    """Low-rank edits of several ranks; `more` are tensors of the patch by form, e.g. dense edits."""
    generator, tensors, base = torch.Generator().manual_seed(0), dict(more), {}
    for i, name in enumerate(names):
        old = weight(pipe, f"{name}.weight")
        out, width = old.shape
        tensors[f"lowrank/{name}/A"] = torch.randn(1 + i % 3, width, generator=generator) * width**-0.5
        tensors[f"lowrank/{name}/B"] = scale * torch.randn(out, 1 + i % 3, generator=generator)
        base[f"{name}.weight"] = tensor_hash(old)
    for key in more:
        base[key.removeprefix("dense/")] = tensor_hash(weight(pipe, key.removeprefix("dense/")))
    return Patch(tensors, {**META, "base": base})


def transform_patch(pipe: Any, rank: int) -> Patch:
    """One transform of the text for all ports, as the closed forms write it; of full rank when rank is 0."""
    ports = text_ports(pipe)
    width, generator = ports[0].module.in_features, torch.Generator().manual_seed(0)
    a, b = (0.3 * torch.randn(rank or width, width, generator=generator) for _ in range(2))
    parts = {"A": a, "B": b.T.contiguous()} if rank else {"T": torch.eye(width) + 0.1 * a @ b}
    base = {port.parameter: tensor_hash(port.module.weight) for port in ports}
    tensors = {f"transform/text/{part}": tensor for part, tensor in parts.items()}
    return Patch(tensors, {**META, "base": base, "groups": {"text": [port.name for port in ports]}})


META = {
    "format": FORMAT,
    "library": "0",
    "method": "by hand",
    "config": {},
    "concepts": [{"name": "star"}],
    "groups": {},
    "base": {},
    "base_dtype": "float32",
}


def adapters(pipe: Any) -> set[str]:
    """The layers that carry an adapter."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {
        f"{name}.{path}"
        for name, part in parts.items()
        for path, layer in part.named_modules()
        if hasattr(layer, "lora_A")
    }


def stock_load(pipe: Any, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.load_lora_weights(str(folder))
