"""The attacks by embeddings of text encoders, on families that have several of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.attacking import ASKS, Says, attacked, candidates, draw, prepared, seeded, small
from support.families.t5 import spread
from support.selection import cases, diagonal
from support.tiny import same, weights

from erasers.attacks import Attack, Candidate, get_attack
from erasers.attacks.candidate import placed
from erasers.attacks.p4d import loss as distance
from erasers.diffusion.adaptors.table import encoders_of
from erasers.diffusion.batches import at_most
from erasers.diffusion.conditions import conditions
from erasers.diffusion.denoiser import denoising_loss
from erasers.diffusion.draws import gaussian
from erasers.diffusion.noise import middle_times
from erasers.diffusion.soft import SoftPrompt

BOTH = ("text_encoder", "text_encoder_2")
DEFAULT = {"sdxl": BOTH, "sd3": BOTH, "flux": BOTH[:1]}
SMALL: dict[str, dict[str, Any]] = {
    "cce": {"tokens": 2, "steps": 2, "batch": 2, "pictures": 2},
    "unlearn_diff_atk": {"timesteps": 2, "steps": 1, "lr": 0.3},
    "p4d": {"k": 3, "steps": 2, "every": 1, "bank": 2, "batch": 2},
}
LONGER: dict[str, dict[str, Any]] = {
    "p4d": {"k": 4, "steps": 30, "every": 5, "bank": 4},
    "cce": {"steps": 12, "lr": 0.2},
    "unlearn_diff_atk": {"timesteps": 1, "steps": 15, "lr": 0.1},
}
QUICK = [("sdxl", "unlearn_diff_atk"), ("sd3", "cce"), ("sd3", "p4d")]


@pytest.mark.parametrize(("family", "name"), diagonal(DEFAULT, SMALL))
def test_it_hands_on_what_draws_and_leaves_the_pipeline_alone(family: str, name: str, tmp_path: Path) -> None:
    pipe, attack = small(family, tmp_path), get_attack(name, **SMALL[name])
    before = weights(pipe)
    ready = prepared(attack, pipe)
    outcome, drawn = attacked(attack, pipe, ready, Says(False)), candidates(attack, pipe, ready)
    assert same(weights(pipe), before)
    assert all(not encoder.get_input_embeddings()._forward_hooks for encoder in encoders_of(pipe).values())
    assert all(weight.requires_grad for encoder in encoders_of(pipe).values() for weight in encoder.parameters())
    budget = attack.budget()
    assert (outcome.spent.gradients, outcome.spent.encodes) == (budget.gradients, budget.encodes)
    assert 1 < outcome.spent.images <= budget.images
    assert {candidate.encoders for candidate in drawn} == {attack.attacked(pipe)} == {DEFAULT[family]}


@pytest.mark.parametrize(("family", "name"), cases(DEFAULT, LONGER, default=lambda *case: case in QUICK))
def test_its_loss_falls(family: str, name: str, tmp_path: Path) -> None:
    pipe, attack = small(family, tmp_path), get_attack(name, **SMALL[name] | LONGER[name])
    if family == "sdxl":
        # Fresh weights of a UNet hardly look at text.
        for module in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2):
            spread(module, attention=2.0)
    ready = prepared(attack, pipe)
    start, end = START[name](pipe, attack, ready), candidates(attack, pipe, ready)
    assert min(LOSS[name](pipe, ready, each) for each in end) < LOSS[name](pipe, ready, start)


@pytest.mark.parametrize("name", ["cce", "p4d"])
def test_a_batch_in_parts_learns_the_same(name: str, tmp_path: Path) -> None:
    pipe, attack = small("sdxl", tmp_path), get_attack(name, **SMALL[name])
    ready = prepared(attack, pipe)
    (*_, whole) = candidates(attack, pipe, ready)
    with at_most(1):
        (*_, parts) = candidates(attack, pipe, ready)
    assert whole.text == parts.text
    for word, vectors in whole.tokens.items():
        torch.testing.assert_close(vectors, parts.tokens[word], atol=1e-4, rtol=1e-3)


def test_a_soft_candidate_is_drawn_by_the_encoders_that_were_attacked(tmp_path: Path) -> None:
    """The same embeddings in the other encoder, of the same width, are another picture."""
    pipe = small("flux", tmp_path)
    attack = get_attack("cce", **SMALL["cce"], encoders=("text_encoder_2",))
    (soft,) = candidates(attack, pipe, prepared(attack, pipe))
    assert soft.encoders == ("text_encoder_2",)
    drawn = {}
    for encoders in (("text_encoder_2",), ("text_encoder",)):
        with placed(pipe, [Candidate(soft.text, soft.tokens, encoders=encoders)]) as arguments:
            drawn[encoders] = draw(pipe, arguments | {"output_type": "latent"}, [0])[0]
            text = arguments["prompt"]
    with placed(pipe, [soft]) as arguments:
        assert torch.equal(draw(pipe, arguments | {"output_type": "latent"}, [0])[0], drawn["text_encoder_2",])
    plain = draw(pipe, {"prompt": text, "output_type": "latent"}, [0])[0]
    assert not torch.equal(drawn["text_encoder_2",], drawn["text_encoder",])
    assert not torch.equal(drawn["text_encoder_2",], plain)


@pytest.mark.parametrize("name", SMALL)
def test_encoders_are_chosen_by_name(name: str, tmp_path: Path) -> None:
    pipe = small("flux", tmp_path)
    attack = get_attack(name, **SMALL[name], encoders=BOTH)
    assert attack.config()["encoders"] == BOTH
    assert "encoders" not in get_attack(name).config()
    candidate = candidates(attack, pipe, prepared(attack, pipe))[0]
    assert candidate.encoders == BOTH
    with pytest.raises(ValueError, match="expected encoders among text_encoder, text_encoder_2, got text_encoder_3"):
        prepared(get_attack(name, **SMALL[name], encoders=("text_encoder_3",)), pipe)


def _soft_loss(pipe: Any, ready: Any, candidate: Candidate) -> float:
    prompt = SoftPrompt(pipe, candidate.text, {word: len(rows) for word, rows in candidate.tokens.items()})
    latents, times = ready.latents.repeat(4, 1, 1, 1), torch.tensor(middle_times(pipe, 8))
    with torch.no_grad():
        condition = prompt.condition(candidate.tokens)
        return denoising_loss(pipe, latents, times, gaussian(latents, seeded(9)), condition).item()


def _text_loss(pipe: Any, ready: Any, candidate: Candidate) -> float:
    latents = ready.latents[ASKS[0].text, ASKS[0].seed].expand(8, -1, -1, -1)
    times = torch.tensor(middle_times(pipe, 1) * 8)
    with torch.no_grad():
        condition = conditions(pipe, [candidate.text])
        return denoising_loss(pipe, latents, times, gaussian(latents, seeded(9)), condition).item()


def _teacher_loss(pipe: Any, ready: Any, candidate: Candidate) -> float:
    teacher = ready.teachers[ASKS[0].text, ASKS[0].seed]
    with torch.no_grad():
        return distance(pipe, teacher, torch.arange(len(teacher.times)), conditions(pipe, [candidate.text])).item()


def _start_of_cce(pipe: Any, attack: Attack, ready: Any) -> Candidate:
    still = get_attack("cce", **SMALL["cce"] | {"steps": 1, "lr": 1e-9})
    return candidates(still, pipe, ready)[0]


def _start_of_prefix(pipe: Any, attack: Attack, ready: Any) -> Candidate:
    """All chances are equal: the first word of all, three times."""
    return Candidate(f"{ready.words.text(pipe, torch.zeros(3, dtype=torch.long))} {ASKS[0].text}")


def _start_of_p4d(pipe: Any, attack: Attack, ready: Any) -> Candidate:
    options = LONGER["p4d"] | {"steps": 1, "every": 1, "lr": 1e-9}
    return candidates(get_attack("p4d", **options), pipe, ready)[0]


LOSS: dict[str, Any] = {"cce": _soft_loss, "unlearn_diff_atk": _text_loss, "p4d": _teacher_loss}
START: dict[str, Any] = {"cce": _start_of_cce, "unlearn_diff_atk": _start_of_prefix, "p4d": _start_of_p4d}
