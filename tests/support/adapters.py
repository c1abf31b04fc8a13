"""A random IP-Adapter for tiny pipelines, in the form of published ones."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from support.tiny import make_pipe, make_unet

EMBEDDING = 12
TOKENS = 4


def save_adapter(unet: Any, folder: Path, name: str = "ip-adapter_tiny.safetensors") -> Path:
    """Write an adapter that fits a UNet, with its encoder of pictures; its file."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    width = unet.config.cross_attention_dim
    tensors = {
        "image_proj.proj.weight": draw(TOKENS * width, EMBEDDING),
        "image_proj.proj.bias": draw(TOKENS * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    crosses = [key.removesuffix(".processor") for key in unet.attn_processors if key.endswith("attn2.processor")]
    for number, layer in enumerate(crosses):
        out = unet.get_submodule(f"{layer}.to_k").weight.shape[0]
        tensors |= {f"ip_adapter.{2 * number + 1}.to_{leaf}_ip.weight": draw(out, width) for leaf in "kv"}
    save_file(tensors, folder / name)
    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        projection_dim=EMBEDDING,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = CLIPVisionModelWithProjection(config)
    # Not by `save_pretrained`, which writes nothing in any process of a group but the first.
    (folder / "image_encoder").mkdir(exist_ok=True)
    encoder.config.architectures = [type(encoder).__name__]
    encoder.config.to_json_file(folder / "image_encoder" / "config.json")
    save_file(encoder.state_dict(), folder / "image_encoder" / "model.safetensors", {"format": "pt"})
    return folder / name


@cache
def tiny_adapter(family: str = "sd1") -> str:
    """The file of an adapter for a tiny Stable Diffusion."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-adapter-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    unet = make_unet(32) if family == "sd1" else make_pipe(family, folder).unet
    return str(save_adapter(unet, folder))


def fitting(eraser: Any, family: str) -> Any:
    """The same method; if it has an adapter, with one for that tiny Stable Diffusion."""
    return replace(eraser, adapter=tiny_adapter(family)) if hasattr(eraser, "adapter") else eraser
