"""The picture half of the world's CLIP as a model of transformers, which diffusers' IP-Adapters read pictures with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""With which diffusers prepares pictures for every IP-Adapter: those of OpenAI's CLIP."""
_OUTER = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_INNER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def vision_encoder(folder: Path) -> CLIPVisionModelWithProjection:
    """The picture encoder of a small open_clip model, in float32, reading pictures as OpenAI's CLIP does.

    What the two subtract and divide by differs; the patches take the scale, and their positions the shift.

    Args:
        folder: With `open_clip_config.json` and `open_clip_model.safetensors`.
    """
    entries = json.loads((folder / "open_clip_config.json").read_text())
    vision, width = entries["model_cfg"]["vision_cfg"], entries["model_cfg"]["vision_cfg"]["width"]
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=entries["model_cfg"]["embed_dim"],
        num_hidden_layers=vision["layers"],
        num_attention_heads=width // vision["head_width"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        hidden_act="gelu",
    )
    model = CLIPVisionModelWithProjection(config)
    state = {name: value.float() for name, value in load_file(folder / "open_clip_model.safetensors").items()}
    converted = dict(_renamed(state, vision["layers"])) | _patches(state, entries["preprocess_cfg"])
    model.load_state_dict(converted, strict=False)
    lacking = [name for name, _ in model.named_parameters() if name not in converted]
    if lacking:
        raise ValueError(f"expected all weights of the picture encoder in {folder}, which lacks {lacking[0]}")
    return model.eval().requires_grad_(False)


def _renamed(state: Mapping[str, Tensor], layers: int) -> Iterator[tuple[str, Tensor]]:
    for name, other in _OUTER.items():
        yield other, state[name]
    yield "visual_projection.weight", state["visual.proj"].T.contiguous()
    for layer in range(layers):
        old, new = f"visual.transformer.resblocks.{layer}", f"vision_model.encoder.layers.{layer}"
        for leaf in ("weight", "bias"):
            for name, other in _INNER.items():
                yield f"{new}.{other}.{leaf}", state[f"{old}.{name}.{leaf}"]
            for letter, part in zip("qkv", state[f"{old}.attn.in_proj_{leaf}"].chunk(3), strict=True):
                yield f"{new}.self_attn.{letter}_proj.{leaf}", part.contiguous()


def _patches(state: Mapping[str, Tensor], prepared: Mapping[str, list[float]]) -> dict[str, Tensor]:
    """W (p - m) / s of pixels p as W' (p - MEAN) / STD + b, b in the positions of patches, not in that of the class."""
    weight, positions = state["visual.conv1.weight"], state["visual.positional_embedding"].clone()
    mean, std = torch.tensor(prepared["mean"]), torch.tensor(prepared["std"])
    scale, shift = torch.tensor(STD) / std, (torch.tensor(MEAN) - mean) / std
    positions[1:] += torch.einsum("ochw,c->o", weight, shift)
    return {
        "vision_model.embeddings.patch_embedding.weight": weight * scale[:, None, None],
        "vision_model.embeddings.position_embedding.weight": positions,
    }
