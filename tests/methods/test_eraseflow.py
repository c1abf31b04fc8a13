"""EraseFlow: densities of steps, the constant of the schedule, and ways that the concept's prompt learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.tiny import same, weights
from support.trained import family_pipe

from erasers import Concept, UnsupportedPipeline, get_eraser
from erasers.diffusion.batches import at_most
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.latents import latent_shape
from erasers.diffusion.noise import ancestral, clean, renoised, step_back
from erasers.methods.eraseflow import EraseFlow, Guided, Path, balance_loss, log_widths, step_balance
from erasers.training.layers import denoiser_names
from erasers.training.loop import TrainedEraser
from erasers.training.student import Student

STAR = Concept("star", anchor="circle")
QUICK: dict[str, Any] = {"iterations": 2, "lr": 1e-2, "steps": 6, "batch": 2, "random_steps": 2, "last_steps": 1}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def eraser_of(**options: Any) -> EraseFlow:
    eraser: Any = get_eraser("eraseflow", **QUICK | options)
    return eraser


def guided_of(pipe: Any, scale: float = 3.0) -> Guided:
    return Guided(pipe, unprompted(pipe), scale)


def test_a_step_with_noise_has_the_posterior_of_the_forward_process(pipe):
    noisy, guess = (torch.randn(2, *latent_shape(pipe), generator=seeded(seed)) for seed in (0, 1))
    times, before = torch.tensor([60, 60]), torch.tensor([40, 40])
    alphas = pipe.scheduler.alphas_cumprod
    a, b = float(alphas[60]), float(alphas[40])
    mean, sigma = ancestral(pipe, noisy, times, before, guess)
    beta = 1 - a / b
    assert float(sigma.flatten()[0]) ** 2 == pytest.approx((1 - b) / (1 - a) * beta, rel=1e-4)
    picture = clean(pipe, noisy, times, guess)
    posterior = math.sqrt(b) * beta / (1 - a) * picture + math.sqrt(a / b) * (1 - b) / (1 - a) * noisy
    torch.testing.assert_close(mean, posterior, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(mean, step_back(pipe, noisy, times, before, guess), atol=1e-3)


def test_noise_that_is_put_back_is_that_between_both_times(pipe):
    alphas, like = pipe.scheduler.alphas_cumprod, torch.ones(1, *latent_shape(pipe))
    mean, sigma = renoised(pipe, like, torch.tensor([10]), torch.tensor([30]))
    ratio = float(alphas[30] / alphas[10])
    torch.testing.assert_close(mean, math.sqrt(ratio) * like)
    assert float(sigma.flatten()[0]) == pytest.approx(math.sqrt(1 - ratio), rel=1e-5)


def test_steps_of_a_way_are_those_that_its_own_prompt_takes(pipe):
    guided, told, other = guided_of(pipe), conditions(pipe, ["a circle"]).expand(8), conditions(pipe, ["a star"])
    path = eraser_of(steps=10, random_steps=4, last_steps=3).way(guided, told, seeded())
    assert len(path.latents) == len(path.times) == 10
    for at in range(9):
        times, before = (torch.full((8,), int(path.times[step])) for step in (at, at + 1))
        with torch.no_grad():
            mean, sigma = ancestral(
                pipe, path.latents[at], times, before, guided(path.latents[at], path.times[at], told)
            )
            own, others = (step_balance(guided, path, at, rows) for rows in (told, other.expand(8)))
        # The noise of a step has the variance 1 in its widths.
        assert float(((path.latents[at + 1] - mean) / sigma).square().mean()) == pytest.approx(1.0, abs=0.15)
        assert torch.isfinite(own - others).all()


def test_widths_telescope_as_the_schedule_has_them(pipe):
    guided = guided_of(pipe)
    path = Path([torch.zeros(1, *latent_shape(pipe))] * 4, [90.0, 60.0, 30.0, 1.0])
    alphas = pipe.scheduler.alphas_cumprod.double()
    # sigma_B^2 / sigma_F^2 = (1 - a) / (1 - a') of both times.
    expected = 0.5 * math.log(float((1 - alphas[90]) / (1 - alphas[1])))
    assert log_widths(guided, path, [0, 1, 2]) == pytest.approx(expected, rel=1e-3)
    assert log_widths(guided, path, [0]) + log_widths(guided, path, [1, 2]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("together", [None, 1])
def test_the_gradient_is_that_of_the_square_of_the_sum(pipe, together):
    guided, told = guided_of(pipe), conditions(pipe, ["a star"]).expand(2)
    eraser = eraser_of()
    path = eraser.way(guided, conditions(pipe, ["a circle"]).expand(2), seeded())
    student = Student(pipe, denoiser_names(pipe, "x-strict"), generator=seeded())
    with student.placed():
        balance = torch.stack([step_balance(guided, path, at, told) for at in (0, 3)]).sum(dim=0)
        whole = torch.autograd.grad(balance.square().mean(), student.parameters)
        with at_most(together):
            assert student.backward(balance_loss(guided, path, [0, 3], told, balance.detach()))
    for weight, slope in zip(student.parameters, whole, strict=True):
        torch.testing.assert_close(weight.grad, slope, rtol=1e-3, atol=1e-6)


def test_steps_are_those_asked_for_and_never_the_very_last():
    eraser = eraser_of(steps=50, random_steps=10, last_steps=10)
    for seed in range(5):
        chosen = eraser.chosen(seeded(seed))
        assert len(set(chosen)) == len(chosen) == 20
        assert chosen[10:] == list(range(39, 49))
        assert max(chosen[:10]) < 39


@pytest.mark.parametrize("constant", ["auto", 2.6953])
def test_what_is_shown_is_the_square_of_the_sum_without_the_constant(pipe, monkeypatch, constant):
    shown: list[dict[str, float]] = []

    def run(self: Any, training: Any, *_: Any) -> str:
        shown.append(dict(training.step(0)))
        return ""

    monkeypatch.setattr(TrainedEraser, "_run", run)
    before = weights(pipe)
    eraser_of(constant=constant).fit(pipe, STAR, progress=False)
    assert same(before, weights(pipe))
    assert shown[0]["loss"] >= 0


@pytest.mark.parametrize("steps", [{"random_steps": 0, "last_steps": 0}, {"random_steps": 4, "last_steps": 2}])
def test_steps_that_a_way_does_not_have_are_refused(steps):
    with pytest.raises(ValueError, match="expected random_steps and last_steps"):
        eraser_of(**steps)


def test_flows_are_refused(tmp_path):
    with pytest.raises(UnsupportedPipeline, match="expected a pipeline with a schedule of alphas"):
        eraser_of().fit(family_pipe("sd3", tmp_path), STAR, progress=False)
