"""Relearning: what it trains, that its patch is what it trained, and that it leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.attacking import ASKS, LONG, Says, attacked, candidates, draw_well, erasure, prepared, quiet_shapes, seeded
from support.tiny import draw, same, weights

from erasers import get_eraser
from erasers.attacks import Candidate, get_attack
from erasers.attacks.relearning import Relearning, low_rank_patch
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.clip import encode
from erasers.diffusion.denoiser import denoising_loss, predict
from erasers.diffusion.draws import gaussian
from erasers.diffusion.low_rank import added, fresh_factors
from erasers.diffusion.tokens import tokenise
from erasers.patch import applied_patches
from erasers.worlds.shapes.prompts import Prompt, concept_for

SMALL = {"steps": 3, "batch": 2, "rank": 2, "pictures": 3, "lr": 0.01}
FORMS = ("none", "weights", "hooks")


def predicted(pipe: Any, text: str = "a red star") -> torch.Tensor:
    noisy = gaussian(torch.empty(2, 4, 8, 8), seeded(1))
    with torch.no_grad():
        return predict(pipe, noisy, torch.tensor([10, 70]), Condition(encode(pipe, tokenise(pipe, text))))


def test_all_projections_of_attention_are_trained_and_start_at_nothing(pipe: Any) -> None:
    factors = fresh_factors(pipe, 2, seeded())
    linear = {f"unet.{path}" for path, part in pipe.unet.named_modules() if isinstance(part, torch.nn.Linear)}
    attention = {name for name in linear if ".attn" in name}
    assert set(factors) == attention
    assert any(".attn1." in name for name in attention)
    before = predicted(pipe)
    with added(pipe, factors):
        assert torch.equal(predicted(pipe), before)


@pytest.mark.parametrize("form", FORMS)
def test_the_patch_does_what_was_trained(pipe: Any, form: str) -> None:
    """Also where a hook in front of the denoiser has to be folded into the weights below the patch."""
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
    attack, patch = Relearning(**SMALL), erasure(pipe, form)
    ready = prepared(attack, pipe)
    if patch is not None:
        patch.apply(pipe)
    before, picture, patches = weights(pipe), draw(pipe), applied_patches(pipe)
    trained = [parameter.requires_grad for parameter in pipe.unet.parameters()]
    (candidate,) = candidates(attack, pipe, ready)
    assert same(weights(pipe), before)
    assert [parameter.requires_grad for parameter in pipe.unet.parameters()] == trained
    with candidate.placed(pipe) as arguments:
        assert arguments == {"prompt": ASKS[0].text}
        assert not torch.equal(draw(pipe), picture)
    assert same(weights(pipe), before)
    assert torch.equal(draw(pipe), picture)
    assert applied_patches(pipe) == patches
    assert not any(part._forward_hooks for name, part in pipe.unet.named_modules() if ".attn" in name)


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
    assert not any(part._forward_hooks for name, part in pipe.unet.named_modules() if ".attn" in name)


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


def test_other_families_and_bad_options_are_refused(pipes: Any) -> None:
    with pytest.raises(TypeError, match="expected a Stable Diffusion 1 or 2 pipeline"):
        prepared(Relearning(), pipes("sdxl"))
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
        with candidate.placed(pipe):
            return denoising_loss(
                pipe, ready.latents, times, noise, Condition(encode(pipe, tokenise(pipe, ask.text)))
            ).item()

    unedited = loss(Candidate(ask.text))
    with get_eraser("uce").fit(pipe, concept_for("star"), progress=False).applied(pipe):
        erased = loss(Candidate(ask.text))
        (candidate,) = attack.run(pipe, ask, ready, generator=seeded(1))
        relearned = loss(candidate)
    assert unedited < erased
    assert relearned < erased - 0.3 * (erased - unedited)
