"""Several patches as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import draw, same, weights

from erasers import Concept, Patch, PatchError
from erasers.files.hashing import tensor_hash
from erasers.models.ports import port_groups
from erasers.patch.build import transform_patch
from erasers.patch.merge import merged

WIDTH = 32
QUERY = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def transform(pipe: Any, seed: int, rank: int = 2) -> Patch:
    (group,) = port_groups(pipe)
    generator = torch.Generator().manual_seed(seed)
    a, b = (0.3 * torch.randn(rank, WIDTH, generator=generator) for _ in range(2))
    hashes = {port.parameter: tensor_hash(port.module.weight) for port in group.ports}
    return transform_patch("uce", {}, [Concept(f"concept {seed}")], [(group, a, b.T)], hashes)


def of_tensors(pipe: Any, tensors: dict[str, torch.Tensor], seed: int = 0) -> Patch:
    """A patch of these tensors, for the weights that the pipeline has now."""
    live = weights(pipe)
    layers = {name.split("/")[1] for name in tensors if not name.startswith("hook/")}
    names = [layer if layer in live else f"{layer}.weight" for layer in layers] or ["unet.conv_in.bias"]
    meta = {**transform(pipe, seed).meta, "groups": {}, "base": {name: tensor_hash(live[name]) for name in names}}
    return Patch(tensors, {key: value for key, value in meta.items() if key != "sketches"})


def lowrank(pipe: Any, layer: str, seed: int, rank: int = 3) -> Patch:
    generator = torch.Generator().manual_seed(seed)
    out, width = weights(pipe)[f"{layer}.weight"].shape
    a, b = 0.3 * torch.randn(rank, width, generator=generator), 0.3 * torch.randn(out, rank, generator=generator)
    return of_tensors(pipe, {f"lowrank/{layer}/A": a, f"lowrank/{layer}/B": b}, seed)


def hook(pipe: Any, target: str, kind: str = "prompt_transform") -> Patch:
    generator = torch.Generator().manual_seed(7)
    parts = {
        f"hook/{target}/{kind}/{part}": 0.1 * torch.randn(shape, generator=generator)
        for part, shape in {"A": (1, WIDTH), "B": (WIDTH, 1)}.items()
    }
    return of_tensors(pipe, parts)


MAKERS = {
    "transform": lambda pipe, seed: transform(pipe, seed),
    "whole transform": lambda pipe, seed: transform(pipe, seed, rank=20),
    "self attention": lambda pipe, seed: lowrank(pipe, QUERY, seed),
    "text": lambda pipe, seed: lowrank(pipe, KEY, seed),
}
STACKS = [
    ("transform", "transform"),
    ("transform", "whole transform"),
    ("whole transform", "transform", "text"),
    ("text", "transform"),
    ("text", "text", "transform", "self attention"),
    ("transform", "text", "whole transform", "text"),
]


def on_top(pipe: Any, patches: Sequence[Patch]) -> dict[str, torch.Tensor]:
    for patch in patches:
        patch.apply(pipe)
    after = {name: tensor.clone() for name, tensor in weights(pipe).items()}
    for patch in patches:
        patch.remove(pipe)
    return after


@pytest.mark.parametrize("kinds", STACKS, ids=" + ".join)
def test_one_patch_does_what_several_do_on_top_of_each_other(pipe, tmp_path: Path, kinds):
    before = weights(pipe)
    patches = [MAKERS[kind](pipe, seed) for seed, kind in enumerate(kinds)]
    patch = merged(patches, method="several", config={"several": 1})
    patch.save(tmp_path / "patch.safetensors")
    patch, wanted = Patch.load(tmp_path / "patch.safetensors"), on_top(pipe, patches)
    assert not same(before, wanted)
    with patch.applied(pipe):
        after = weights(pipe)
        for name, weight in wanted.items():
            torch.testing.assert_close(after[name], weight, rtol=1e-5, atol=1e-5)
    assert same(before, weights(pipe))
    assert patch.nbytes <= sum(other.nbytes for other in patches)
    assert [concept["name"] for concept in patch.meta["concepts"]] == list(
        dict.fromkeys(other.meta["concepts"][0]["name"] for other in patches)
    )


def test_a_patch_that_was_fitted_on_top_of_another_is_for_the_model_itself(pipe):
    first = transform(pipe, 0)
    with first.applied(pipe):
        second = transform(pipe, 1)
    with pytest.raises(PatchError, match="other weights"):
        second.apply(pipe)
    both = merged([first, second], method="several", config={})
    assert both.meta["base"] == first.meta["base"] != second.meta["base"]
    assert both.meta["sketches"] == first.meta["sketches"]
    with both.applied(pipe):
        assert both.is_applied(pipe)


def test_a_merged_patch_becomes_a_lora_and_scales(pipe, tmp_path: Path):
    patch = merged([transform(pipe, 0), lowrank(pipe, KEY, 1)], method="several", config={})
    old, name = weights(pipe)[f"{KEY}.weight"], f"{KEY}.weight"
    down, up = patch.changes[name].factors(old)
    with patch.applied(pipe):
        whole = weights(pipe)[name] - old
    torch.testing.assert_close(up @ down, whole, rtol=1e-4, atol=1e-5)
    with patch.applied(pipe, strength=0.5):
        torch.testing.assert_close(weights(pipe)[name] - old, whole / 2, rtol=1e-4, atol=1e-5)
    assert patch.to_lora(pipe, tmp_path / "lora").is_file()


def test_hooks_stay_what_they_are(pipe):
    patches = [lowrank(pipe, KEY, 1), hook(pipe, "unet")]
    patch = merged(patches, method="several", config={})
    assert {name for name in patch.tensors if name.startswith("hook/")} == set(patches[1].tensors)
    with patches[0].applied(pipe), patches[1].applied(pipe):
        wanted = draw(pipe)
    with patch.applied(pipe):
        torch.testing.assert_close(draw(pipe), wanted)


def test_what_cannot_be_one_patch_is_refused(pipe):
    bias, other = f"{KEY}.weight", weights(pipe)[f"{KEY}.weight"] + 1
    dense = of_tensors(pipe, {f"dense/{bias}": other})
    with pytest.raises(PatchError, match="dense values"):
        merged([transform(pipe, 0), dense], method="several", config={})
    with pytest.raises(PatchError, match="dense values"):
        merged([dense, lowrank(pipe, KEY, 0)], method="several", config={})
    with pytest.raises(PatchError, match="two patches with hooks on unet"):
        merged([hook(pipe, "unet"), hook(pipe, "unet")], method="several", config={})
    with pytest.raises(PatchError, match="after the one that edits"):
        merged([hook(pipe, "unet"), transform(pipe, 0)], method="several", config={})
    first = transform(pipe, 0)
    group = {name: ports[:-1] for name, ports in first.meta["groups"].items()}
    other = Patch(first.tensors, {**first.meta, "groups": group})
    with pytest.raises(PatchError, match="other ports"):
        merged([first, other], method="several", config={})


def test_two_edits_of_one_weight_have_one_width(pipe):
    both = merged([transform(pipe, 0), lowrank(pipe, KEY, 1)], method="several", config={})
    tensors = {**both.tensors, f"lowrank/{KEY}/A": torch.ones(3, WIDTH + 1)}
    with pytest.raises(PatchError, match="one width"):
        Patch(tensors, both.meta)
    twice = {**both.tensors, f"dense/{KEY}.weight": torch.ones(2, 2)}
    with pytest.raises(PatchError, match="one edit for each parameter"):
        Patch(twice, both.meta)
