"""Erased pipelines in the user's hands: LoRAs of their own, and folders that load erased or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import t5
from families.base import draw
from torch import nn

from erasers import ErasedPipeline, Patch
from erasers.hashing import tensor_hashes
from erasers.ports import text_ports

TOLERANCE = 2e-5
SHORT = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
OPTIONS = {"sd1": SHORT, "sdxl": SHORT, "sd3": t5.GUIDED, "flux": t5.GUIDED}
PROMPT = "a picture of star"


@pytest.fixture
def build(pipes: Callable[[str], Any], tmp_path: Path) -> Callable[[str], Any]:
    """Builds the same tiny pipeline of a family at every call."""

    def build(family: str) -> Any:
        return t5.FAMILIES[family].build(tmp_path / "files") if family in t5.FAMILIES else pipes(family)

    return build


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


@pytest.mark.parametrize("family", OPTIONS)
def test_a_lora_of_the_users_own_leaves_the_erasure_in_place(family: str, build: Callable[[str], Any]) -> None:
    pipe, reference = build(family), build(family)
    patch = weight_patch(pipe)
    lora = style(pipe)
    plain = picture(pipe, family)
    erased = picture(patch.apply(pipe), family)
    styled = picture(add_by_hand(patch.apply(reference), lora, 1.0), family)
    half = picture(add_by_hand(reference, lora, -0.5), family)
    assert (erased - plain).abs().max() > 0.01
    assert (styled - erased).abs().max() > 0.01
    assert (styled - picture(add_by_hand(build(family), lora, 1.0), family)).abs().max() > 0.01

    pipe.load_lora_weights(dict(lora), adapter_name="style")
    assert pipe.get_list_adapters() != {}
    assert same(picture(pipe, family), styled)
    pipe.set_adapters(["style"], [0.5])
    assert same(picture(pipe, family), half)
    pipe.disable_lora()
    assert same(picture(pipe, family), erased)
    pipe.enable_lora()
    pipe.unload_lora_weights()
    assert same(picture(pipe, family), erased)
    pipe.load_lora_weights(dict(lora), adapter_name="style")
    pipe.fuse_lora()
    assert same(picture(pipe, family), styled)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert same(picture(pipe, family), erased)


@pytest.mark.parametrize("family", OPTIONS)
def test_an_erased_pipeline_is_saved_with_a_lora_only_when_it_is_fused(
    family: str, build: Callable[[str], Any], tmp_path: Path
) -> None:
    import diffusers

    pipe = build(family)
    patch = weight_patch(pipe)
    patch.apply(pipe)
    pipe.load_lora_weights(style(pipe), adapter_name="style")
    with pytest.raises(ValueError, match=r"not fused; call pipe\.fuse_lora"):
        ErasedPipeline.save_pretrained(pipe, tmp_path / "erased", [patch])
    assert not (tmp_path / "erased").exists()
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    expected = picture(pipe, family)
    saved = ErasedPipeline.save_pretrained(pipe, tmp_path / "erased", [patch])
    assert same(picture(diffusers.DiffusionPipeline.from_pretrained(saved), family), expected)
