"""Other words and other sentences: no search, always on."""

from __future__ import annotations

from typing import Any

import pytest
from support.attacking import ASKS, Says, Wanted, attacked, draw_well, erasure, quiet_shapes, texts

from erasers import get_eraser
from erasers.attacks import get_attack
from erasers.attacks.wording import swap
from erasers.attacks.words import Words, variants
from erasers.judges.oracle import Oracle
from erasers.worlds.shapes.prompts import Prompt, concept_for


@pytest.mark.parametrize(
    ("text", "words", "by", "wanted"),
    [
        ("a red Star, a starfish", ["star"], "moon", "a red moon, a starfish"),
        ("a star and a pentagram", ["star", "pentagram"], "moon", "a moon and a moon"),
        ("a star  sign", ["star", "star  sign"], "moon", "a moon"),
        ("a red star on white", ["star"], "", "a red on white"),
        ("a star (big)", ["(big)"], r"\1", r"a star \1"),
    ],
)
def test_words_are_swapped_where_they_stand_alone(text: str, words: list[str], by: str, wanted: str) -> None:
    assert swap(text, words, by) == wanted


def test_synonyms_come_first_then_templates() -> None:
    found = variants("a red star", ["star"], ["pentagram", "moon"], ["{}", "a {}", "a red {}"])
    assert found == [
        "a red pentagram",
        "a red moon",
        "star",
        "pentagram",
        "moon",
        "a star",
        "a pentagram",
        "a moon",
    ]


def test_a_synonym_in_the_prompt_is_replaced_by_the_others() -> None:
    found = variants("a red pentagram", ["star"], ["pentagram", "moon"], [])
    assert found == ["a red moon"]


def test_a_prompt_without_the_concept_has_templates_alone() -> None:
    assert variants("a red shape", ["star"], ["moon"], ["a {}"]) == ["a star", "a moon"]


def test_the_words_are_those_that_the_prompt_wants_unless_given(pipe: Any) -> None:
    assert texts(Words(templates=("a {}",)), pipe, None) == ["a star"]
    assert texts(Words(templates=("a {}",), concept=("moon", "ring")), pipe, None) == ["a moon", "a ring"]
    both = Wanted("a red star", wants={"object": "star", "colour": "red"})
    attack = Words(templates=("a {}",))
    assert len(texts(attack, pipe, None, both)) == attack.budget().images - 1 == 1


def test_an_unscored_picture_is_no_success(pipe: Any) -> None:
    attack = Words(templates=("a {}", "{}"))
    outcome = attacked(attack, pipe, None, Says(None), ASKS[1])
    assert (outcome.pre, outcome.post, outcome.unscored) == (None, False, 3)
    patch = erasure(pipe)
    assert patch is not None
    with patch.applied(pipe):
        assert attacked(attack, pipe, None, Says(True), ASKS[1]).spent.images == 1


@pytest.mark.full
def test_words_bring_a_star_back_that_is_there_and_none_that_was_erased() -> None:
    pipe = quiet_shapes()
    ask = Prompt("a red shape", {"object": "star"}, 3)
    attack = get_attack("words", synonyms=("pentagram",), templates=("a red {}",))
    patch = get_eraser("uce").fit(pipe, concept_for("star"), progress=False)
    there = attacked(attack, pipe, None, Oracle(), ask, draw_well)
    with patch.applied(pipe):
        gone = attacked(attack, pipe, None, Oracle(), ask, draw_well)
    assert (there.pre, there.post, there.image, there.text) == (False, True, 1, "a red star")
    assert (gone.pre, gone.post, gone.spent.images) == (False, False, 3)
