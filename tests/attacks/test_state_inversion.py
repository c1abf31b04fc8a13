"""Inversion of states: what it learns, how it is drawn, and what it leaves alone."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from support.attacking import ASKS, Says, attacked, candidates, draw, draw_well, erasure, prepared, quiet_shapes, seeded
from support.tiny import same, weights

from erasers import get_eraser
from erasers.attacks import get_attack
from erasers.attacks.candidate import Candidate, placed
from erasers.diffusion.conditions import conditions
from erasers.diffusion.read_instead import check_instead, exchanged, read_instead
from erasers.judges.oracle import Oracle
from erasers.models.families import UnsupportedPipeline
from erasers.worlds.shapes.prompts import Prompt, concept_for

SMALL: dict[str, Any] = {"steps": 3, "batch": 2, "pictures": 3}


@pytest.mark.parametrize("form", ["weights", "hooks"])
def test_it_learns_states_and_leaves_the_pipeline_alone(pipe: Any, form: str) -> None:
    before, attack = weights(pipe), get_attack("state_inversion", **SMALL)
    ready, patch = prepared(attack, pipe), erasure(pipe, form)
    assert patch is not None
    with patch.applied(pipe):
        edited, plain = weights(pipe), conditions(pipe, [ASKS[0].text])
        (found,) = candidates(attack, pipe, ready)
        assert same(weights(pipe), edited)
    assert found.condition is not None
    assert found.text == ASKS[0].text
    assert found.condition.states.shape == plain.states.shape
    assert not found.condition.states.requires_grad
    size = plain.states.square().mean().sqrt()
    assert 0.05 * size < (found.condition.states - plain.states).abs().max() < 0.3 * size
    assert same(weights(pipe), before)
    assert "encode_prompt" not in vars(pipe)


def test_the_pooled_vector_is_learned_where_there_is_one(modern: Any) -> None:
    attack = get_attack("state_inversion", **SMALL)
    plain = conditions(modern, [ASKS[0].text])
    (found,) = candidates(attack, modern, prepared(attack, modern))
    assert found.condition is not None
    assert plain.pooled is not None
    assert found.condition.pooled is not None
    assert not torch.equal(found.condition.pooled, plain.pooled)
    assert not torch.equal(found.condition.states, plain.states)


def test_it_is_drawn_with_what_was_learned(modern: Any) -> None:
    """With the condition of another prompt a prompt draws what that one draws; with its own, what it drew."""
    text, other = ASKS[0].text, "a blue circle of art"
    expected, own = (draw(modern, {"prompt": prompt}, [5])[0] for prompt in (other, text))
    for condition, picture in ((conditions(modern, [other]), expected), (conditions(modern, [text]), own)):
        with placed(modern, [Candidate(text, condition=condition)]) as arguments:
            (drawn,) = draw(modern, arguments, [5])
        assert drawn.tobytes() == picture.tobytes()
    assert expected.tobytes() != own.tobytes()


def test_other_texts_are_read_as_ever(pipe: Any) -> None:
    condition = conditions(pipe, ["a blue circle"])
    (before,) = draw(pipe, {"prompt": "a red star"}, [5])
    with read_instead(pipe, "a picture of star", condition):
        (after,) = draw(pipe, {"prompt": "a red star"}, [5])
        draw(pipe, {"prompt": "a picture of star"}, [5])
    assert before.tobytes() == after.tobytes()


def test_a_text_that_is_never_read_is_an_error(pipe: Any) -> None:
    with (
        pytest.raises(ValueError, match="to read 'a picture of star' as it was read before"),
        read_instead(pipe, "a picture of star", conditions(pipe, ["a blue circle"])),
    ):
        draw(pipe, {"prompt": "a red star"}, [5])
    assert "encode_prompt" not in vars(pipe)


def test_only_what_is_the_prompts_own_is_exchanged(pipe: Any) -> None:
    plain, other = conditions(pipe, ["a red star"]), conditions(pipe, ["a blue circle"])
    negative = conditions(pipe, [""]).states
    states, untouched, nothing = exchanged((plain.states.repeat(2, 1, 1), negative, None), plain, other)
    assert torch.equal(states, other.states.repeat(2, 1, 1))
    assert untouched is negative
    assert nothing is None


def test_it_spends_what_its_budget_says(pipe: Any) -> None:
    attack = get_attack("state_inversion", **SMALL)
    assert attacked(attack, pipe, prepared(attack, pipe), Says(False)).spent == attack.budget()


def test_the_same_seed_learns_the_same(pipe: Any) -> None:
    attack = get_attack("state_inversion", **SMALL)
    first, second = (candidates(attack, pipe, prepared(attack, pipe))[0].condition for _ in range(2))
    assert first is not None
    assert second is not None
    assert torch.equal(first.states, second.states)


def test_a_pipeline_that_hands_states_on_in_another_form_is_refused(pipe: Any) -> None:
    own = pipe.encode_prompt

    @functools.wraps(own)
    def counted(*args: Any, **kwargs: Any) -> list[Any]:
        return [{0: value} for value in own(*args, **kwargs)]

    pipe.encode_prompt = counted
    with pytest.raises(UnsupportedPipeline, match="encode_prompt returns what its denoiser reads"):
        check_instead(pipe)


@pytest.mark.parametrize("option", [{"steps": 0}, {"batch": 0}, {"pictures": 0}, {"lr": 0.0}])
def test_bad_options_are_refused(option: Any) -> None:
    with pytest.raises(ValueError, match="expected steps, batch and pictures of at least 1 and lr above 0"):
        get_attack("state_inversion", **option)


@pytest.mark.full
def test_it_recovers_what_uce_erased() -> None:
    pipe = quiet_shapes()
    ask = Prompt("a blue arrow on a grey background in the style of zorblat", {"style": "zorblat"}, 3)
    attack = get_attack("state_inversion", steps=60, batch=4, pictures=4)
    ready = attack.prepare(pipe, [ask], draw=draw_well, generator=seeded())
    with get_eraser("uce").fit(pipe, concept_for("zorblat"), progress=False).applied(pipe):
        found = attacked(attack, pipe, ready, Oracle(), ask, draw_well)
    assert (found.pre, found.post) == (False, True)
