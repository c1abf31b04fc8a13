"""A tiny Stable Diffusion under the names of the original code, in one file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_name(name: str, layers: int = 1) -> str:
    """The original name of a weight of a UNet with that many layers a block on the way down."""
    for new, old in _OUTER.items():
        if name.startswith(f"{new}."):
            return f"{old}.{name.removeprefix(new + '.')}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name)
    if match is None:
        kind, number, rest = re.fullmatch(r"mid_block\.(\w+)\.(\d)\.(.*)", name).groups()  # type: ignore[union-attr]
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}.{_inner(kind, rest)}"
    way, block, kind, number, rest = match.groups()
    if way == "down":
        index = int(block) * (layers + 1) + 1 + int(number)
        if kind == "downsamplers":
            return f"input_blocks.{(int(block) + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{index}.{int(kind == 'attentions')}.{_inner(kind, rest)}"
    index = int(block) * (layers + 1) + int(number)
    if kind == "upsamplers":
        return f"output_blocks.{int(block) * (layers + 1) + layers}.1.{rest}"
    return f"output_blocks.{index}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    part, _, leaf = rest.rpartition(".")
    return f"{_RESNET[part]}.{leaf}"


def vae_name(name: str, blocks: int = 2) -> str:
    """The original name of a weight of an autoencoder with that many blocks."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    back = lambda match: str(blocks - 1 - int(match[1]))  # noqa: E731
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda match: f"up.{back(match)}.block.", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda match: f"up.{back(match)}.upsample.", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        name = name.replace("mid_block.attentions.0.", "mid.attn_1.")
        for new, old in _VAE_ATTENTION.items():
            name = name.replace(f"attn_1.{new}.", f"attn_1.{old}.")
    return name


def write_checkpoint(pipe: Any, path: Path, drop: str = "") -> Path:
    """Write a Stable Diffusion 1 as model sites offer it; weights whose names contain `drop` are left out."""
    tensors = {f"model.diffusion_model.{unet_name(name)}": value for name, value in pipe.unet.state_dict().items()}
    for name, value in pipe.vae.state_dict().items():
        square = "attn_1" in vae_name(name) and value.ndim == 2
        tensors[f"first_stage_model.{vae_name(name)}"] = value[:, :, None, None] if square else value
    for name, value in pipe.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    tensors["alphas_cumprod"] = torch.ones(3)
    kept = {name: value.contiguous().clone() for name, value in tensors.items() if not drop or drop not in name}
    save_file(kept, path)
    return path
