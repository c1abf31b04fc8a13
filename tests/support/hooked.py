"""Tiny pipelines with patches of weights and of hooks, and folders of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from erasers import Concept, ErasedPipeline, Patch, get_eraser
from erasers.files.hashing import tensor_hashes
from erasers.models.ports import text_ports
from support import REPOSITORY
from support.families import t5
from support.families.base import draw

PIPELINES = REPOSITORY / "pipelines"
STOCK = (
    diffusers.StableDiffusionPipeline,
    diffusers.StableDiffusionXLPipeline,
    diffusers.StableDiffusion3Pipeline,
    diffusers.FluxPipeline,
)
TOLERANCE = 2e-5
SHORT = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
OPTIONS = {"sd1": SHORT, "sdxl": SHORT, "sd3": t5.GUIDED, "flux": t5.GUIDED}
PROMPT = "a picture of star"


def picture(pipe: Any, family: str) -> torch.Tensor:
    return draw(pipe, PROMPT, OPTIONS[family])


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two pictures differ by rounding alone: sums may run in another order where memory lies differently."""
    return bool((left - right).abs().max() < TOLERANCE)


def weight_patch(pipe: Any, seed: int = 0) -> Patch:
    """A low-rank edit of the linear maps through which text enters."""
    generator = torch.Generator().manual_seed(seed)
    layers = {port.name: port.module for port in text_ports(pipe)}
    tensors = {}
    for name, layer in layers.items():
        tensors[f"lowrank/{name}/A"] = torch.randn(2, layer.in_features, generator=generator)
        tensors[f"lowrank/{name}/B"] = torch.randn(layer.out_features, 2, generator=generator) * layer.weight.std()
    base = tensor_hashes({f"{name}.weight": layer.weight.data for name, layer in layers.items()})
    meta = {"format": 1, "method": "test", "config": {"seed": seed}, "concepts": [{"name": "star"}], "groups": {}}
    return Patch(tensors, {**meta, "base": base})


def style(pipe: Any) -> dict[str, torch.Tensor]:
    """A LoRA of the user's own, on layers that the patch edits and on others."""
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    generator = torch.Generator().manual_seed(7)
    weights = {}
    for path, layer in getattr(pipe, name).named_modules():
        if isinstance(layer, nn.Linear) and path.rpartition(".")[2] in ("to_q", "to_k", "context_embedder"):
            weights[f"{name}.{path}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=generator) / 4
            weights[f"{name}.{path}.lora_B.weight"] = torch.randn(layer.out_features, 2, generator=generator) / 4
    return weights


def add_by_hand(pipe: Any, lora: dict[str, torch.Tensor], scale: float) -> Any:
    for key in [key for key in lora if ".lora_A." in key]:
        component, _, path = key.removesuffix(".lora_A.weight").partition(".")
        layer = getattr(pipe, component).get_submodule(path)
        layer.weight.data += scale * lora[key.replace("lora_A", "lora_B")] @ lora[key]
    return pipe


def hook_patch(pipe: Any) -> Patch:
    """The prompt transform of a closed form, which runs in front of the weights."""
    patch = get_eraser("uce").fit(pipe, Concept("star", anchor="circle"), progress=False).to_hooks(pipe)
    assert patch.has_hooks
    assert patch.parameters == []
    return patch


def build(family: str, pipes: Callable[[str], Any], folder: Path) -> Any:
    """The same tiny pipeline of a family at every call."""
    return t5.FAMILIES[family].build(folder / "files") if family in t5.FAMILIES else pipes(family)


@dataclass(frozen=True)
class Saved:
    """A folder of a pipeline with hooks."""

    family: str
    folder: Path
    stock: Any
    plain: torch.Tensor
    erased: torch.Tensor
    patch: Patch

    def load(self, cls: Any = diffusers.DiffusionPipeline, **options: Any) -> Any:
        return cls.from_pretrained(str(self.folder), variant="unerased", trust_remote_code=True, **options)


def mixed_patch(pipe: Any) -> Patch:
    """Edits of weights and a hook in one patch."""
    weights, hook = weight_patch(pipe), hook_patch(pipe)
    return Patch(
        {**weights.tensors, **hook.tensors}, {**weights.meta, "base": {**hook.meta["base"], **weights.meta["base"]}}
    )


def in_turn(pipe: Any, *patches: Patch, strength: float = 1.0) -> Any:
    for patch in patches:
        patch.apply(pipe, strength=strength)
    return pipe


def weights_of(patch: Patch) -> Patch:
    return Patch({name: tensor for name, tensor in patch.tensors.items() if not name.startswith("hook/")}, patch.meta)


def save(pipe: Any, family: str, folder: Path) -> Saved:
    patch = hook_patch(pipe)
    plain, erased = picture(pipe, family), picture(patch.apply(pipe), family)
    assert not same(plain, erased)
    return Saved(family, ErasedPipeline.save_pretrained(pipe, folder, [patch]), type(pipe), plain, erased, patch)
