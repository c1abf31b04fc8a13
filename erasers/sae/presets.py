"""Sizes and rates of published autoencoders, for `erase sae train --preset`; the small defaults are this library's.

What a paper leaves open, or what this library does otherwise (`SAETraining`), is said for each. Memory is that of the
training: weights, gradients and two moments in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DENOISERS = ("unet", "transformer")
"""Components that draw; the others encode prompts."""


@dataclass(frozen=True)
class Preset:
    """One published setting.

    Args:
        component: Of the pipeline.
        block: Its number in a text encoder, or its path in a UNet.
        options: Fields of `SAETraining`.
        source: Where they are from, and what is not.
    """

    component: str
    block: str
    options: Mapping[str, Any]
    source: str


_ITD: Mapping[str, Any] = {
    "features": 524_288,
    "k": 64,
    "activation": "topk",
    "prompts": 50,
    "lr": 1e-4,
    "warmup": 1000,
    "auxiliary": 256,
}
_SAEURON: Mapping[str, Any] = {
    "features": 20_480,
    "k": 32,
    "activation": "batchtopk",
    "steps": 4000,
    "prompts": 8,
    "lr": 4e-4,
    "warmup": 0,
    "auxiliary": 640,
    "dead_after": 10_000_000,
}
_STEPS_OF_SAEURON = (
    "eight pictures with guidance are its 4,096 rows a step; its epochs (5; 10 for styles) are not steps"
)

PRESETS: Mapping[str, Preset] = {
    "itd": Preset(
        "text_encoder", "8", {**_ITD, "steps": 6000}, "ItD, arXiv 2503.09446: the checkpoint of styles and celebrities"
    ),
    "itd-nudity": Preset("text_encoder", "8", {**_ITD, "steps": 4000}, "ItD, arXiv 2503.09446: that of nudity"),
    "steerers": Preset(
        "text_encoder",
        "9",
        {
            "features": 3072,
            "k": 32,
            "activation": "topk",
            "steps": 97_656,
            "prompts": 53,
            "lr": 4e-4,
            "warmup": 0,
            "auxiliary": 32,
        },
        "Concept Steerers, arXiv 2501.19066: 400 million rows, 4,096 a step, with the padding that stays out here",
    ),
    "saeuron-object": Preset(
        "unet", "up_blocks.1.attentions.1", _SAEURON, f"SAeUron, arXiv 2501.18052; {_STEPS_OF_SAEURON}"
    ),
    "saeuron-style": Preset(
        "unet", "up_blocks.1.attentions.2", _SAEURON, f"SAeUron, arXiv 2501.18052; {_STEPS_OF_SAEURON}"
    ),
}


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: Lists the names.
    """
    if name not in PRESETS:
        raise ValueError(f"expected a preset among {', '.join(PRESETS)}, got {name!r:.80}")
    return PRESETS[name]
