"""LoRAs in the kohya form: the names that web UIs read, which are those of the original checkpoints for newer models.

Those have some layers in one that diffusers has apart, such as q, k and v. Edits of these become one edit of the layer,
with a block on the diagonal for each part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from erasers.files.tensors import PatchError
from erasers.models.components import below_adapters, submodule

Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Layer -> (down `[r, in]`, up `[out, r]`)."""

_UNET = re.compile(r".+\.attentions\..+|add_embedding\.linear_[12]")
# Layers that no reader finds under the name they have in diffusers.
_UNET_NAMES = {"add_embedding.linear_1": "label_emb_0_0", "add_embedding.linear_2": "label_emb_0_2"}
_FLUX = re.compile(
    r"context_embedder|time_text_embed\.text_embedder\.linear_[12]"
    r"|(single_)?transformer_blocks\.\d+\.attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
)
_TEXT = re.compile(r"(text_model\.)?(?P<path>encoder\.layers\.\d+\.self_attn\.(q|k|v|out)_proj)")

_IMAGE, _ADDED = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
# Path of the blocks in diffusers -> their name, and of each layer in them the parts that diffusers has apart.
_SD3_BLOCKS = {
    "transformer_blocks": (
        "joint_blocks",
        {
            "x_block_attn_qkv": _IMAGE,
            "x_block_attn_proj": ("attn.to_out.0",),
            "x_block_attn2_qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
            "x_block_attn2_proj": ("attn2.to_out.0",),
            "x_block_mlp_fc1": ("ff.net.0.proj",),
            "x_block_mlp_fc2": ("ff.net.2",),
            "x_block_adaLN_modulation_1": ("norm1.linear",),
            "context_block_attn_qkv": _ADDED,
            "context_block_attn_proj": ("attn.to_add_out",),
            "context_block_mlp_fc1": ("ff_context.net.0.proj",),
            "context_block_mlp_fc2": ("ff_context.net.2",),
        },
    )
}
_SD3_LAYERS = {
    "context_embedder": "context_embedder",
    "time_text_embed.text_embedder.linear_1": "y_embedder_mlp_0",
    "time_text_embed.text_embedder.linear_2": "y_embedder_mlp_2",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder_mlp_0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder_mlp_2",
    "proj_out": "final_layer_linear",
}
_FLUX_BLOCKS = {
    "transformer_blocks": (
        "double_blocks",
        {
            "img_attn_qkv": _IMAGE,
            "img_attn_proj": ("attn.to_out.0",),
            "img_mlp_0": ("ff.net.0.proj",),
            "img_mlp_2": ("ff.net.2",),
            "img_mod_lin": ("norm1.linear",),
            "txt_attn_qkv": _ADDED,
            "txt_attn_proj": ("attn.to_add_out",),
            "txt_mlp_0": ("ff_context.net.0.proj",),
            "txt_mlp_2": ("ff_context.net.2",),
            "txt_mod_lin": ("norm1_context.linear",),
        },
    ),
    "single_transformer_blocks": (
        "single_blocks",
        {"linear1": (*_IMAGE, "proj_mlp"), "linear2": ("proj_out",), "modulation_lin": ("norm.linear",)},
    ),
}
# The only sizes that diffusers splits the fused layer of single blocks into.
_FLUX_SINGLE = (3072, 3072, 3072, 12288)


@dataclass(frozen=True)
class Place:
    """Where a layer stands in a LoRA.

    Args:
        name: Of the layer there.
        part: Which part of it the layer of diffusers is.
        sizes: Rows of each part.
    """

    name: str
    part: int
    sizes: tuple[int, ...]


def stock_reads(pipe: Any) -> bool:
    """Whether stock diffusers reads this form for the denoiser; for that of Stable Diffusion 3 it loads nothing."""
    return _denoiser(pipe)[2] != "SD3Transformer2DModel"


def places(pipe: Any, layers: Iterable[str]) -> dict[str, Place]:
    """Where layers stand, by their names `<component>.<path>` in diffusers.

    Raises:
        PatchError: Layers that have no name, or none that the readers of this form share.
    """
    layers, refused = list(layers), ""
    for table in _tables(pipe):
        missing = [layer for layer in layers if layer not in table]
        if not missing:
            return {layer: table[layer] for layer in layers}
        refused = refused or missing[0]
    raise PatchError(
        "expected layers of Stable Diffusion 1, 2, XL, 3 or FLUX.1 that web UIs read under names of their own for the "
        f"kohya form, got {refused or layers[0]} of {type(pipe).__name__}; write form='peft', or the edited weights: "
        "patch.to_delta(pipe, folder)"
    )


def named_layers(pipe: Any) -> dict[str, dict[str, Place]]:
    """By every name that the form has for this pipeline, the layers of diffusers that it means."""
    named: dict[str, dict[str, Place]] = {}
    for table in _tables(pipe):
        for layer, place in table.items():
            named.setdefault(place.name, {})[layer] = place
    return named


def fused(factors: Factors, where: Mapping[str, Place]) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA: one rank for all parts, filled up with zeros, for diffusers gives every layer the alpha of
    the first, and finds the blocks of parts by their size.
    """
    rank = max(down.shape[0] for down, _ in factors.values())
    groups: dict[str, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {}
    for layer, (down, up) in factors.items():
        missing = rank - down.shape[0]
        padded = functional.pad(down, (0, 0, 0, missing)), functional.pad(up, (0, missing))
        groups.setdefault(where[layer].name, {})[where[layer].part] = padded
    sizes = {place.name: place.sizes for place in where.values()}
    tensors: dict[str, torch.Tensor] = {}
    for name, parts in groups.items():
        width = next(iter(parts.values()))[0].shape[1]
        nothing = torch.zeros(rank, width)
        blocks = [parts[part][1] if part in parts else torch.zeros(size, rank) for part, size in enumerate(sizes[name])]
        downs = [parts[part][0] if part in parts else nothing for part in range(len(blocks))]
        tensors[f"{name}.lora_down.weight"] = torch.cat(downs).contiguous()
        tensors[f"{name}.lora_up.weight"] = torch.block_diag(*blocks).contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(rank * len(blocks)))
    return tensors


def unfused(pipe: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same LoRA with the names of diffusers; parts that it leaves as they are are left out.

    Args:
        pipe: A pipeline.
        tensors: A LoRA whose names `named_layers` has.
    """
    plain: dict[str, torch.Tensor] = {}
    known = named_layers(pipe)
    for name in dict.fromkeys(key.partition(".")[0] for key in tensors):
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        up = up * (float(tensors.get(f"{name}.alpha", torch.tensor(len(down)))) / len(down))
        for layer, place in known[name].items():
            rows = up.split(place.sizes)[place.part]
            if rows.any():
                plain[f"{layer}.lora_A.weight"], plain[f"{layer}.lora_B.weight"] = down.clone(), rows.clone()
    return plain


def _tables(pipe: Any) -> list[dict[str, Place]]:
    """Names of layers, and where they stand: one table, or several of which a file has to keep to one."""
    component, denoiser, kind = _denoiser(pipe)
    linear = [path for path, module in denoiser.named_modules() if isinstance(module, torch.nn.Linear)]
    layers = [path.removesuffix(".base_layer") for path in linear if ".lora_" not in path]
    if kind in ("UNet2DConditionModel", "UNetMotionModel"):
        names = {path: _UNET_NAMES.get(path, path.replace(".", "_")) for path in layers if _UNET.fullmatch(path)}
        tables = [_alone(denoiser, names, "lora_unet_")]
    elif kind == "SD3Transformer2DModel":
        names = {path: name for path, name in _SD3_LAYERS.items() if path in layers}
        tables = [_alone(denoiser, names, "lora_unet_") | _blocks(denoiser, _SD3_BLOCKS)]
    elif kind == "FluxTransformer2DModel":
        original = _blocks(denoiser, _FLUX_BLOCKS)
        readable = {
            path: place for path, place in original.items() if len(place.sizes) < 4 or place.sizes == _FLUX_SINGLE
        }
        # Of these, diffusers reads the embedders, too, but no file may have both.
        names = {path: path.replace(".", "_") for path in layers if _FLUX.fullmatch(path)}
        tables = [readable, _alone(denoiser, names, "lora_transformer_")]
    else:
        return []
    texts = _texts(pipe)
    return [{f"{component}.{path}": place for path, place in table.items()} | texts for table in tables]


def _denoiser(pipe: Any) -> tuple[str, torch.nn.Module, str]:
    """Its component, the module, and the name of its class."""
    for name in ("unet", "transformer"):
        module = getattr(pipe, name, None)
        module = getattr(module, "_orig_mod", module)
        if isinstance(module, torch.nn.Module):
            return name, module, type(module).__name__
    return "", torch.nn.Module(), ""


def _alone(denoiser: torch.nn.Module, names: Mapping[str, str], prefix: str) -> dict[str, Place]:
    return {path: Place(f"{prefix}{name}", 0, (_rows(denoiser, path),)) for path, name in names.items()}


def _blocks(
    denoiser: torch.nn.Module, kinds: Mapping[str, tuple[str, Mapping[str, tuple[str, ...]]]]
) -> dict[str, Place]:
    """The layers of the blocks that have all of their parts."""
    table: dict[str, Place] = {}
    for path, (name, layers) in kinds.items():
        for number in range(len(denoiser.get_submodule(path))):  # type: ignore[arg-type]
            for layer, parts in layers.items():
                paths = [f"{path}.{number}.{part}" for part in parts]
                if all(submodule(denoiser, each) is not None for each in paths):
                    sizes = tuple(_rows(denoiser, each) for each in paths)
                    own = f"lora_unet_{name}_{number}_{layer}"
                    table |= {each: Place(own, part, sizes) for part, each in enumerate(paths)}
    return table


def _texts(pipe: Any) -> dict[str, Place]:
    """The layers of CLIP text encoders, which are numbered where the family has several encoders."""
    table: dict[str, Place] = {}
    several = getattr(pipe, "text_encoder_2", None) is not None
    for component, number in {"text_encoder": "1", "text_encoder_2": "2"}.items():
        encoder = getattr(pipe, component, None)
        for path, module in encoder.named_modules() if isinstance(encoder, torch.nn.Module) else ():
            match = _TEXT.fullmatch(path)
            if match:
                name = f"lora_te{number if several else ''}_text_model_{match['path'].replace('.', '_')}"
                table[f"{component}.{path}"] = Place(name, 0, (_rows(module, ""),))
    return table


def _rows(root: torch.nn.Module, path: str) -> int:
    module = below_adapters(submodule(root, path))
    return int(module.out_features)  # type: ignore[union-attr, arg-type]
