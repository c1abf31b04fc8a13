"""Relearning: what it trains, that its patch is what it trained, and that it leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.attacking import ASKS, LONG, Says, attacked, candidates, draw_well, erasure, prepared, quiet_shapes, seeded
from support.families.all import FAMILIES
from support.tiny import draw, same, weights

from erasers import get_eraser
from erasers.attacks import Candidate, get_attack
from erasers.attacks.candidate import placed
from erasers.attacks.relearning import Relearning, low_rank_patch
from erasers.diffusion.adaptors.table import denoisers_of
from erasers.diffusion.conditions import conditions
from erasers.diffusion.denoiser import denoising_loss, predict
from erasers.diffusion.draws import gaussian
from erasers.diffusion.latents import latent_shape
from erasers.diffusion.low_rank import added, fresh_factors
from erasers.diffusion.noise import flows
from erasers.models.components import parameters_of
from erasers.patch import applied_patches
from erasers.worlds.shapes.prompts import Prompt, concept_for

SMALL = {"steps": 3, "batch": 2, "rank": 2, "pictures": 3, "lr": 0.01}
FORMS = ("none", "weights", "hooks")


def predicted(pipe: Any, text: str = "a red star") -> torch.Tensor:
    noisy = gaussian(torch.empty(2, *latent_shape(pipe)), seeded(1))
    with torch.no_grad():
        return predict(pipe, noisy, torch.tensor([10, 70]), conditions(pipe, [text]))


def attention_of(pipe: Any) -> dict[str, torch.nn.Module]:
    """The attention layers of the denoisers, by full name."""
    return {
        f"{owner}.{path}": layer
        for owner, denoiser in denoisers_of(pipe).items()
        for path, layer in denoiser.named_modules()
        if ".attn" in path
    }


def test_all_projections_of_attention_are_trained_and_start_at_nothing(pipe: Any) -> None:
    all_are_trained_from_nothing(pipe)
    assert any(".attn1." in name for name in attention_of(pipe))


def test_all_projections_of_joint_attention_are_trained_too(modern: Any) -> None:
    all_are_trained_from_nothing(modern)


def all_are_trained_from_nothing(pipe: Any) -> None:
    factors = fresh_factors(pipe, 2, seeded())
    attention = {name for name, layer in attention_of(pipe).items() if isinstance(layer, torch.nn.Linear)}
    assert set(factors) == attention
    before = predicted(pipe)
    with added(pipe, factors):
        assert torch.equal(predicted(pipe), before)


@pytest.mark.parametrize("form", ["weights", "hooks"])
def test_the_patch_does_what_was_trained_of_joint_attention(modern: Any, form: str) -> None:
    the_patch_does_what_was_trained(modern, form)


@pytest.mark.parametrize("form", FORMS)
def test_the_patch_does_what_was_trained(pipe: Any, form: str) -> None:
    """Also where a hook in front of the denoiser has to be folded into the weights below the patch."""
    the_patch_does_what_was_trained(pipe, form)


def the_patch_does_what_was_trained(pipe: Any, form: str) -> None:
    attack, patch = Relearning(**SMALL), erasure(pipe, form)
    if patch is not None:
        patch.apply(pipe)
    factors = fresh_factors(pipe, 2, seeded())
    zero = low_rank_patch(attack, pipe, factors)
    before = predicted(pipe)
    for _, up in factors.values():
        up.data = 0.3 * gaussian(up.data, seeded(3))
    with zero.applied(pipe), added(pipe, factors):
        trained = predicted(pipe)
    with low_rank_patch(attack, pipe, factors).applied(pipe):
        drawn = predicted(pipe)
    assert (trained - before).norm() > 0.05 * before.norm()
    assert torch.allclose(trained, drawn, atol=1e-5)
    assert torch.equal(predicted(pipe), before)


def test_hooks_and_weights_are_relearned_alike(pipe: Any) -> None:
    attack = Relearning(**SMALL)
    ready, found = prepared(attack, pipe), []
    for patch in (erasure(pipe, "weights"), erasure(pipe, "hooks")):
        assert patch is not None
        with patch.applied(pipe):
            (candidate,) = candidates(attack, pipe, ready)
        assert candidate.patch is not None
        found.append(candidate.patch.tensors)
    # AdamW makes steps of full size of slopes that are nearly nothing: not every value agrees.
    close = torch.cat([torch.isclose(found[0][name], found[1][name], atol=1e-3).flatten() for name in found[0]])
    assert close.float().mean() > 0.995


@pytest.mark.parametrize("form", FORMS)
def test_it_leaves_the_pipeline_as_it_was(pipe: Any, form: str) -> None:
    it_leaves_the_pipeline_as_it_was(pipe, form)


def test_it_leaves_other_families_as_they_were(modern: Any) -> None:
    it_leaves_the_pipeline_as_it_was(modern, "weights")


def it_leaves_the_pipeline_as_it_was(pipe: Any, form: str) -> None:
    attack, patch = Relearning(**SMALL), erasure(pipe, form)
    ready = prepared(attack, pipe)
    if patch is not None:
        patch.apply(pipe)
    before, picture, patches = weights(pipe), draw(pipe), applied_patches(pipe)
    trained = [weight.requires_grad for _, weight in parameters_of(pipe)]
    (candidate,) = candidates(attack, pipe, ready)
    assert same(weights(pipe), before)
    assert [weight.requires_grad for _, weight in parameters_of(pipe)] == trained
    with placed(pipe, [candidate]) as arguments:
        assert arguments == {"prompt": [ASKS[0].text]}
        assert not torch.equal(draw(pipe), picture)
    assert same(weights(pipe), before)
    assert torch.equal(draw(pipe), picture)
    assert applied_patches(pipe) == patches
    assert not any(layer._forward_hooks for layer in attention_of(pipe).values())


def test_an_error_in_training_leaves_the_pipeline_as_it_was(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = Relearning(**SMALL)
    ready, before = prepared(attack, pipe), weights(pipe)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("erasers.attacks.relearning.denoising_in_parts", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        candidates(attack, pipe, ready)
    assert same(weights(pipe), before)
    assert not applied_patches(pipe)
    assert not any(layer._forward_hooks for layer in attention_of(pipe).values())


def test_the_same_seed_learns_the_same(pipe: Any) -> None:
    attack = Relearning(**SMALL)
    digests = []
    for _ in range(2):
        (candidate,) = candidates(attack, pipe, prepared(attack, pipe))
        assert candidate.patch is not None
        digests.append(candidate.patch.digest)
    assert digests[0] == digests[1]
    (other,) = attack.run(pipe, ASKS[0], prepared(attack, pipe), generator=seeded(8))
    assert other.patch is not None
    assert other.patch.digest != digests[0]


@pytest.mark.parametrize("ask", [ASKS[1], LONG])
def test_it_spends_what_its_budget_says(pipe: Any, ask: Any) -> None:
    attack = Relearning(**SMALL)
    outcome = attacked(attack, pipe, prepared(attack, pipe, [ask]), Says(False), ask)
    assert outcome.spent == attack.budget()
    assert (outcome.post, outcome.text) == (False, ask.text)


def test_it_spends_what_its_budget_says_on_other_families(modern: Any) -> None:
    attack = Relearning(**SMALL)
    outcome = attacked(attack, modern, prepared(attack, modern), Says(False))
    assert outcome.spent == attack.budget()


def test_pictures_of_other_families_are_learned(modern: Any) -> None:
    """What was not attacked, and what learns nothing from the pictures, stay as far from them as they were."""
    attack = Relearning(steps=5, batch=3, rank=4, pictures=3)
    ready = prepared(attack, modern)
    noise, times = gaussian(ready.latents, seeded(9)), torch.tensor([20.0, 50.0, 80.0])
    times = times.long() if not flows(modern) else 10 * times

    @torch.no_grad()
    def loss(candidate: Candidate) -> float:
        with placed(modern, [candidate]):
            return denoising_loss(modern, ready.latents, times, noise, conditions(modern, ready.texts)).item()

    (candidate,) = candidates(attack, modern, replace(ready, lr=4 * ready.lr))
    (still,) = candidates(attack, modern, replace(ready, lr=1e-9))
    plain = loss(Candidate(ASKS[0].text))
    assert loss(candidate) < 0.99 * plain
    assert loss(still) == pytest.approx(plain, rel=1e-4)


def test_other_families_and_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected a pipeline that can be trained and attacked"):
        prepared(Relearning(), FAMILIES["hunyuandit"].build(tmp_path))
    with pytest.raises(ValueError, match="expected steps, batch, rank and pictures of at least 1"):
        get_attack("relearning", rank=0)
    with pytest.raises(ValueError, match="lr above 0"):
        get_attack("relearning", lr=-1.0)


@pytest.mark.full
def test_the_loss_falls_on_an_erased_star() -> None:
    pipe = quiet_shapes()
    ask = Prompt("a red star on a white background", {"object": "star"}, 5)
    attack = get_attack("relearning", steps=12, batch=4, pictures=4, lr=5e-3)
    ready = attack.prepare(pipe, [ask], draw=draw_well, generator=seeded())
    noise, times = gaussian(ready.latents, seeded(9)), torch.tensor([200, 400, 600, 800])

    @torch.no_grad()
    def loss(candidate: Candidate) -> float:
        with placed(pipe, [candidate]):
            return denoising_loss(pipe, ready.latents, times, noise, conditions(pipe, [ask.text])).item()

    unedited = loss(Candidate(ask.text))
    with get_eraser("uce").fit(pipe, concept_for("star"), progress=False).applied(pipe):
        erased = loss(Candidate(ask.text))
        (candidate,) = attack.run(pipe, ask, ready, generator=seeded(1))
        relearned = loss(candidate)
    assert unedited < erased
    assert relearned < erased - 0.3 * (erased - unedited)
