"""SAFE: guidance goes to that of the replacement while what is predicted without a prompt is held."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import same, weights
from support.trained import family_pipe
from torch.nn import functional

from erasers import Concept, Patch, get_eraser
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.counting import Counter
from erasers.diffusion.denoiser import predict
from erasers.diffusion.latent_bank import Way, sample_bank
from erasers.methods.safe import goals
from erasers.training.loop import TrainedEraser

STAR = Concept("star", anchor="circle")
QUICK: dict[str, Any] = {"iterations": 40, "lr": 1e-3, "steps": 4, "pictures": 2, "batch": 4, "drawn_by": "frozen"}


def losses(pipe: Any, concept: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[dict[str, float]]:
    """What each iteration shows."""
    shown: list[dict[str, float]] = []

    def run(self: Any, training: Any, *_: Any) -> str:
        shown.extend(dict(training.step(number)) for number in range(self.iterations))
        return ""

    monkeypatch.setattr(TrainedEraser, "_run", run)
    get_eraser("safe", **QUICK | options).fit(pipe, concept, progress=False)
    return shown


def test_the_gradient_is_that_of_the_loss_of_the_guidance():
    named, nothing = (torch.randn(3, 2, 4, requires_grad=True) for _ in range(2))
    guidance = torch.randn(3, 2, 4)
    (named - nothing - guidance).square().sum().backward()
    whole = [value.grad.clone() for value in (named, nothing)]
    apart = [value.detach().requires_grad_() for value in (named, nothing)]
    for value, goal in zip(apart, goals(named.detach(), nothing.detach(), guidance), strict=True):
        (value - goal).square().sum().backward()
    for value, slope in zip(apart, whole, strict=True):
        torch.testing.assert_close(value.grad, slope)


@pytest.mark.parametrize("family", ["sd1", "sd3"])
def test_guidance_goes_to_that_of_the_replacement_and_the_empty_prompt_is_held(family, tmp_path):
    pipe = family_pipe(family, tmp_path)
    named, other, empty = conditions(pipe, ["star"]), conditions(pipe, ["circle"]), unprompted(pipe)
    bank = sample_bank(pipe, named, empty, Way(4, 3.0), rounds=2, generator=torch.Generator().manual_seed(9))

    @torch.no_grad()
    def said(condition: Any) -> torch.Tensor:
        return predict(pipe, bank.latents, bank.times, condition)

    before, goal, still = said(named) - said(empty), said(other) - said(empty), said(empty)
    drift = {}
    for keep in (0.0, 10.0):
        own = {"rank": 0} if family == "sd1" else {"rank": 8, "lr": 2e-3}
        patch = get_eraser("safe", **QUICK | own, train_method="x", keep=keep).fit(pipe, STAR, progress=False)
        with patch.applied(pipe):
            after, drift[keep] = said(named) - said(empty), float((said(empty) - still).norm())
        assert functional.mse_loss(after, goal) < 0.6 * functional.mse_loss(before, goal)
    assert drift[10.0] < 0.8 * drift[0.0]


def test_with_the_concept_for_its_replacement_there_is_nothing_to_learn(pipe, monkeypatch):
    # An anchor has other tokens, so that is a concept of two names that read alike.
    monkeypatch.setattr("erasers.training.ways.WayEraser.prompt_pairs", lambda self, concepts: {"star": "star"})
    (shown,) = losses(pipe, STAR, monkeypatch, iterations=1)
    assert shown["erase"] < 1e-12
    assert shown["drift"] < 1e-12


def test_an_anchor_of_no_words_has_no_guidance(pipe, monkeypatch):
    heard = get_eraser("safe").hear(pipe, [Concept("star", anchor="")])
    assert torch.equal(heard.asked.states, heard.empty.states)
    shown = losses(pipe, Concept("star", anchor=""), monkeypatch, iterations=1)[0]
    assert shown["drift"] == 0
    assert shown["erase"] > 0


def test_what_is_shown_is_the_loss(pipe, monkeypatch):
    shown = losses(pipe, STAR, monkeypatch, iterations=30)
    assert shown[0]["drift"] < 1e-12 < shown[-1]["drift"]
    assert shown[-1]["erase"] < shown[0]["erase"]


@pytest.mark.parametrize("drawn_by", ["student", "frozen"])
def test_it_spends_what_it_foretells(pipe, drawn_by):
    options = {"iterations": 5, "steps": 3, "batch": 2, "refresh": 2, "drawn_by": drawn_by}
    eraser = get_eraser("safe", **options)
    with Counter(pipe) as counter:
        eraser.fit(pipe, Concept("star", anchor="circle", aliases=["ring"]), progress=False)
    assert counter.calls == eraser.cost(pipe, [Concept("star", anchor="circle", aliases=["ring"])])


def test_only_what_is_trained_moves(pipe):
    before = weights(pipe)
    patch: Patch = get_eraser("safe", **QUICK | {"iterations": 2}, train_method="x-strict").fit(pipe, STAR)
    with patch.applied(pipe):
        moved = {name for name, value in weights(pipe).items() if not torch.equal(value, before[name])}
    assert moved
    assert all(".attn2.to_k" in name or ".attn2.to_v" in name for name in moved)
    assert same(before, weights(pipe))


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="expected keep"):
        get_eraser("safe", keep=-1.0)
