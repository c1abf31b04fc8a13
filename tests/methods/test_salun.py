"""SalUn: which weights are masked, by what gradient, and that the others stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import same, weights

from erasers import Concept, get_eraser
from erasers.diffusion.batches import at_most
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.denoiser import predict
from erasers.diffusion.latents import latent_shape
from erasers.methods.salun import forgetting, salient
from erasers.training.layers import denoiser_names
from erasers.training.scenes import Noised, noised
from erasers.training.student import Student

STAR = Concept("star", anchor="circle", preserve=["a moon", "a red circle"], neighbours=["ring"])
QUICK: dict[str, Any] = {"iterations": 3, "lr": 1e-2, "steps": 2, "pictures": 3, "kept": 2, "batch": 2}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(pipe: Any) -> Noised:
    pictures = torch.randn(3, *latent_shape(pipe), generator=seeded())
    return noised(pipe, pictures, conditions(pipe, ["a star"]).expand(3), seeded(1))


def test_the_mask_has_its_share_of_the_largest_gradients():
    slopes = [torch.tensor([[3.0, -5.0], [0.0, 1.0]]), torch.tensor([-4.0, 2.0])]
    assert [mask.tolist() for mask in salient(slopes, 0.5)] == [[[1, 1], [0, 0]], [1, 0]]
    assert [mask.tolist() for mask in salient(slopes, 1 / 6)] == [[[0, 1], [0, 0]], [0, 0]]
    assert [mask.tolist() for mask in salient(slopes, 1e-9)] == [[[0, 1], [0, 0]], [0, 0]]
    # A weight that has no say is never in it.
    assert [mask.tolist() for mask in salient(slopes, 1.0)] == [[[1, 1], [0, 1]], [1, 1]]


@pytest.mark.parametrize("together", [None, 1, 2])
def test_the_gradient_is_that_of_the_guided_forgetting_loss(pipe, together):
    batch, empty, guidance = batch_of(pipe), unprompted(pipe), 3.0
    student = Student(pipe, denoiser_names(pipe, "x-strict"), generator=seeded())
    with student.placed():
        named, nothing = (predict(pipe, batch.noisy, batch.times, told) for told in (batch.told, empty.expand(3)))
        loss = -((1 + guidance) * named - guidance * nothing - batch.goal).square().mean()
        whole = torch.autograd.grad(loss, student.parameters)
    with at_most(together), student.placed():
        assert student.backward(forgetting(pipe, batch, empty, guidance))
    for weight, slope in zip(student.parameters, whole, strict=True):
        torch.testing.assert_close(weight.grad, slope, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_only_masked_weights_move(pipe, share):
    before = weights(pipe)
    patch = get_eraser("salun", **QUICK, share=share, train_method="x").fit(pipe, STAR, progress=False)
    with patch.applied(pipe):
        after = weights(pipe)
    assert same(before, weights(pipe))
    names = denoiser_names(pipe, "x")
    moved = sum(int((after[name] != before[name]).sum()) for name in patch.parameters)
    total = sum(before[name].numel() for name in names)
    assert 0.5 * share * total < moved <= round(share * total) + 1
    assert all(torch.equal(after[name], before[name]) for name in before if name not in patch.parameters)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"rank": 4}, "expected rank 0"), ({"share": 0.0}, "share"), ({"share": 1.5}, "share"), ({"kept": 0}, "kept")],
)
def test_what_makes_no_mask_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        get_eraser("salun", **options)
