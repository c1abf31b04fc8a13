"""What every method that trains keeps to on every family: the pipeline stays as it is, and a patch comes on and off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.families.all import FAMILIES
from support.families.base import draw
from support.selection import diagonal
from support.tiny import same, weights
from support.trained import METHODS, STAR, family_pipe, fitted_in_two_goes

from erasers import Patch, get_eraser
from erasers.diffusion.adaptors.table import denoiser_of
from erasers.diffusion.counting import Counter
from erasers.models.feeding import feeds_of
from erasers.training import recomputing

TRAINED: dict[str, dict[str, Any]] = {
    "esd": METHODS["esd"],
    "doco": METHODS["doco"] | {"everyday": False, "captions": ("a {}",), "pictures": 2},
    "robust_ablation": METHODS["robust_ablation"]
    | {
        "everyday": False,
        "templates": ("a {}",),
        "pictures": 2,
        "kept": 2,
        "bank": 2,
        "tokens": (1,),
        "relearn_lr": 1e-2,
    },
    "few_shot": METHODS["few_shot"],
    "adv_unlearn": METHODS["adv_unlearn"],
}
"""Method -> its options in little time."""
STEADY = {"robust_ablation": {"attack_scale": 0.0, "relearn_scale": 0.0}}
"""What attacks end with depends on the last bits."""
SHOWN = ("sd1", "sdxl", "sd3", "flux")


def made(method: str, pipe: Any, **options: Any) -> Any:
    """The method; of those that train text encoders, the one that trains them all."""
    everything = {"encoders": tuple(feeds_of(pipe))} if method in ("few_shot", "adv_unlearn") else {}
    return get_eraser(method, **options | everything)


@pytest.mark.parametrize(("method", "family"), diagonal(TRAINED, SHOWN))
def test_a_patch_is_fitted_comes_on_and_off_and_through_a_file(method, family, tmp_path):
    pipe, options = family_pipe(family, tmp_path), FAMILIES[family].options
    eraser = made(method, pipe, **TRAINED[method] | {"iterations": 3, "lr": 1e-2})
    before, plain = weights(pipe), draw(pipe, "a star", options)
    with Counter(pipe) as counter:
        patch = eraser.fit(pipe, STAR, progress=False)
    assert same(before, weights(pipe))
    assert eraser.cost(pipe, [STAR]) == counter.calls
    with patch.applied(pipe):
        erased = draw(pipe, "a star", options)
    assert not torch.allclose(erased, plain, atol=1e-3)
    assert same(before, weights(pipe))
    assert torch.equal(draw(pipe, "a star", options), plain)
    patch.save(tmp_path / "patch.safetensors")
    with Patch.load(tmp_path / "patch.safetensors").applied(pipe):
        assert torch.equal(draw(pipe, "a star", options), erased)


@pytest.mark.parametrize(("method", "family"), diagonal(TRAINED, SHOWN[::-1]))
def test_what_goes_on_from_a_checkpoint_ends_in_the_same_patch(method, family, tmp_path):
    pipe = family_pipe(family, tmp_path)
    eraser = made(method, pipe, **TRAINED[method] | {"iterations": 3, "lr": 1e-2})
    whole = eraser.fit(pipe, STAR, progress=False)
    assert fitted_in_two_goes(eraser, pipe, STAR, tmp_path / "checkpoint", 2).digest == whole.digest


@pytest.mark.parametrize(("method", "family"), diagonal(TRAINED, ("sdxl", "sd3", "flux")))
def test_half_precision_trains_to_nearly_the_same(method, family, tmp_path):
    patches = []
    for dtype in (torch.float32, torch.bfloat16):
        pipe = family_pipe(family, tmp_path / str(dtype)).to(dtype)
        options = TRAINED[method] | {"iterations": 3, "lr": 1e-2, "rank": 2} | STEADY.get(method, {})
        patches.append(made(method, pipe, **options).fit(pipe, STAR, progress=False))
    names = [name for name in patches[0].tensors if name.endswith("/B")]
    whole, half = (torch.cat([patch.tensors[name].flatten().float() for name in names]) for patch in patches)
    assert torch.nn.functional.cosine_similarity(whole, half, dim=0) > 0.6


@pytest.mark.parametrize(("method", "family"), diagonal(TRAINED, SHOWN))
def test_gradient_checkpointing_changes_nothing(method, family, tmp_path, monkeypatch):
    pipe, blocks, patches = family_pipe(family, tmp_path), [], []
    run = recomputing.recomputed
    monkeypatch.setattr(
        recomputing, "recomputed", lambda block, *inputs: (blocks.append(block), run(block, *inputs))[1]
    )
    for flag in (False, True):
        assert not blocks
        options = TRAINED[method] | {"iterations": 2, "gradient_checkpointing": flag}
        patches.append(made(method, pipe, **options).fit(pipe, STAR, progress=False))
    assert blocks
    assert not denoiser_of(pipe).is_gradient_checkpointing
    for name, tensor in patches[0].tensors.items():
        torch.testing.assert_close(tensor, patches[1].tensors[name], rtol=1e-2, atol=1e-3)
