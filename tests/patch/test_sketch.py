"""Fingerprints that hold across the types in which one checkpoint is loaded, and what they tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families.all import FAMILIES
from support.selection import only

from erasers import Concept, Patch, PatchError, get_eraser, load_pipeline
from erasers.patch.sketch import fits, is_sketch, make_sketch

TYPES = (torch.float32, torch.float16, torch.bfloat16)
STAR = Concept("star", anchor="circle")


def weights(seed: int, *shape: int) -> torch.Tensor:
    return 0.03 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def accepted(changed: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a sketch of the weights fits changed ones, loaded in bfloat16."""
    text = make_sketch(weight)
    assert text is not None
    return fits(text, changed.bfloat16())


@pytest.mark.full
@pytest.mark.parametrize("shipped", [torch.float32, torch.float16])
def test_no_load_of_a_checkpoint_is_refused(shipped: torch.dtype) -> None:
    """None of 600 tensors. Fitted in bfloat16, float16 files of a float32 checkpoint are others: rounded twice."""
    for seed in range(100):
        for shape in ((320, 768), (77,), (5, 3, 3)):
            weight = weights(seed, *shape).to(shipped).float()
            for fitted in TYPES:
                text = make_sketch(weight.to(fitted))
                loads = TYPES if fitted == torch.bfloat16 else (torch.bfloat16,)
                assert all(fits(str(text), weight.to(live)) for live in loads)
                if fitted != torch.bfloat16 or shipped == torch.float16:
                    assert fits(str(text), weight.half().bfloat16())
                assert fits(str(text), weight.bfloat16().float())


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(9),
        torch.ones(320),
        torch.full((4000,), 0.1003),
        torch.full((2, 2), 6e-8),
        torch.ones(1),
        -weights(0, 3),
    ],
)
def test_constant_and_small_weights_are_not_refused(weight: torch.Tensor) -> None:
    assert accepted(weight, weight)


def test_what_training_changes_is_told_apart() -> None:
    """Shares of changed weights that a sketch takes for the same, one tensor alone: the limit of what it can say."""
    shares = {}
    for change in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        pairs = [(weights(seed, 320, 768), weights(seed + 1000, 320, 768)) for seed in range(40)]
        shares[change] = sum(accepted(w + change * noise, w) for w, noise in pairs) / 40
    assert shares[1e-1] == shares[1e-2] == 0
    assert shares[1e-3] <= 0.1
    # Every entry moved by a thousandth of the rounding: in bfloat16 these are mostly the same numbers.
    assert shares[1e-5] >= 0.5


def test_a_patch_tells_apart_what_one_tensor_does_not() -> None:
    """A patch for Stable Diffusion 1 knows 32 weights; one that does not fit is enough."""
    for change, most in ((1e-3, 0), (1e-4, 2)):
        taken = 0
        for trial in range(10):
            pairs = [(weights(100 * trial + i, 64, 96), weights(5000 + 100 * trial + i, 64, 96)) for i in range(32)]
            taken += all(accepted(w + change * noise, w) for w, noise in pairs)
        assert taken <= most


@pytest.mark.parametrize("rows", [1, 4])
def test_rows_that_were_replaced_are_told_apart(rows: int) -> None:
    taken = 0
    for seed in range(40):
        weight = weights(seed, 320, 768)
        changed = weight.clone()
        changed[7 : 7 + rows] = weights(seed + 1000, rows, 768) + 0.01
        taken += accepted(changed, weight)
    assert taken <= 4


def test_a_low_rank_edit_of_small_size_is_told_apart() -> None:
    """As a LoRA that is fused does: a thousandth of the weights' norm, along one direction."""
    taken = 0
    for seed in range(40):
        weight = weights(seed, 320, 768)
        edit = torch.outer(weights(seed + 1, 320), weights(seed + 2, 768))
        taken += accepted(weight + 1e-2 * edit * weight.norm() / edit.norm(), weight)
    assert taken == 0


def test_sketches_are_read_with_care() -> None:
    text = make_sketch(weights(0, 4, 4))
    assert is_sketch(text)
    for wrong in (None, 3, "", "AAAA", str(text)[:-4], str(text) + "AAAA", "\0" * 172, "/" * 171 + "="):
        assert not is_sketch(wrong)
    for tensor in (torch.zeros(0), torch.tensor([float("nan")]), torch.tensor([float("inf"), 1.0])):
        assert make_sketch(tensor) is None
    assert not fits(str(text), torch.full((4, 4), float("nan")).bfloat16())


@pytest.mark.filterwarnings("ignore::FutureWarning:diffusers", "ignore:text also enters")
@pytest.mark.parametrize("family", only(sorted(FAMILIES), "sd1", "sd3"))
def test_a_patch_fits_its_model_in_every_type(family: str, tmp_path: Path) -> None:
    FAMILIES[family].build(tmp_path / "files").save_pretrained(tmp_path / "model")
    pipes = {dtype: load_pipeline(tmp_path / "model", dtype=dtype) for dtype in TYPES}
    patches = {dtype: get_eraser("uce").fit(pipe, STAR, progress=False) for dtype, pipe in pipes.items()}
    for patch in patches.values():
        patch.save(tmp_path / "patch.safetensors")
        for pipe in pipes.values():
            with Patch.load(tmp_path / "patch.safetensors").applied(pipe):
                assert patch.is_applied(pipe)


def test_another_model_is_refused_in_every_type(pipes: Any) -> None:
    base = pipes("sd1")
    patch = get_eraser("uce").fit(base, STAR, progress=False)
    for dtype in TYPES:
        other = pipes("sd1")
        for parameter in other.unet.parameters():
            parameter.data *= 1.02
        with pytest.raises(PatchError, match="other weights") as caught:
            patch.apply(other.to(dtype))
        assert "in float32" not in str(caught.value)


def test_a_patch_of_before_says_in_which_type_it_fits(pipes: Any) -> None:
    patch = get_eraser("uce").fit(pipes("sd1"), STAR, progress=False)
    old = Patch(patch.tensors, {key: value for key, value in patch.meta.items() if key != "sketches"})
    old.apply(pipes("sd1").to(torch.float16))
    with pytest.raises(PatchError, match=r"in float32 \(this one is in bfloat16\)"):
        old.apply(pipes("sd1").to(torch.bfloat16))


def test_a_stacked_patch_knows_the_weights_below_it(pipes: Any) -> None:
    first, second = (
        get_eraser("uce").fit(pipes("sd1"), Concept(word, anchor="circle"), progress=False) for word in ("star", "moon")
    )
    pipe = pipes("sd1").to(torch.bfloat16)
    first.apply(pipe)
    second.apply(pipe)
    assert first.is_applied(pipe)
    assert second.is_applied(pipe)


@pytest.mark.parametrize("wrong", [[], {"unet.x": "AAAA"}, {"unet.elsewhere.weight": None}, {"*": 3}])
def test_damaged_sketches_are_refused(wrong: Any, pipes: Any) -> None:
    patch = get_eraser("uce").fit(pipes("sd1"), STAR, progress=False)
    with pytest.raises(PatchError, match="sketches"):
        Patch(patch.tensors, {**patch.meta, "sketches": wrong})


def test_without_bfloat16_nothing_is_taken_for_rounding() -> None:
    weight = weights(0, 64, 96)
    assert not fits(str(make_sketch(weight)), weight * (1 + 1e-4))
    assert not fits(str(make_sketch(weight)), weight.half())


def test_of_two_checkpoints_in_bfloat16_one_is_not_the_other() -> None:
    """A step of an optimizer in bfloat16 moves some entries by a unit in the last place, less than rounding may."""
    taken = 0
    for seed in range(40):
        weight = weights(seed, 320, 768).bfloat16()
        moved = torch.where(weights(seed + 1, 320, 768) > 0, weight, torch.nextafter(weight, weight + 1))
        taken += fits(str(make_sketch(weight)), moved)
    assert taken == 0
