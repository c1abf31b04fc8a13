"""Which prompts a model is measured with."""

from __future__ import annotations

import pytest

from erasers import worlds
from erasers.concept import Concept
from erasers.evaluation.profile.profile import plain_prompts, profile_for
from erasers.worlds.shapes.prompts import concept_for


def texts(splits: dict[str, list[object]], split: str) -> list[str]:
    return [ask.text for ask in splits[split]]  # type: ignore[attr-defined]


def test_profiles_differ() -> None:
    assert [judge.name for judge in profile_for("shapes").judges()] == ["oracle/shapes"]
    assert profile_for("some/model").judges() == ()


def test_one_concept_gets_every_split() -> None:
    splits = worlds.get("shapes").prompts([concept_for("star")], 7)["star"]
    assert {split: len(asks) for split, asks in splits.items()} == dict.fromkeys(
        ("explicit", "synonym", "neighbour", "unrelated"), 7
    )


def test_what_is_kept_never_names_another_erased_concept() -> None:
    found = worlds.get("shapes").prompts([concept_for("star"), concept_for("cross"), concept_for("red")], 20)
    for splits in found.values():
        for split in ("neighbour", "unrelated"):
            assert len(splits[split]) == 20
            for text in texts(splits, split):
                assert not {"star", "pentagram", "cross", "red", "crimson", "scarlet"} & set(text.split())


def test_an_alias_that_is_erased_is_not_held_out() -> None:
    concept = Concept("star", aliases=("pentagram",))
    assert all(
        "five pointed thing" in text for text in texts(worlds.get("shapes").prompts([concept], 10)["star"], "synonym")
    )
    both = Concept("star", aliases=("pentagram", "five pointed thing"))
    assert "synonym" not in worlds.get("shapes").prompts([both], 10)["star"]


def test_a_concept_without_synonyms_has_no_such_split() -> None:
    assert "synonym" not in worlds.get("shapes").prompts([concept_for("ring")], 3)["ring"]


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ValueError, match="shapes does not know 'dog'"):
        worlds.get("shapes").prompts([Concept("dog")], 3)


def test_plain_prompts_leave_out_what_is_unsafe_unless_asked() -> None:
    nudity = Concept.preset("nudity")
    assert "explicit" not in plain_prompts(nudity, 50)
    assert len(plain_prompts(nudity, 50, unsafe=True)["explicit"]) == 50
    assert "neighbour" not in plain_prompts(Concept("walrus"), 3)
    assert not any("bicycle" in text for text in texts(plain_prompts(Concept("bicycle"), 40), "unrelated"))


def test_plain_prompts_come_in_turn_each_with_noise_of_its_own() -> None:
    style = plain_prompts(Concept.preset("van gogh"), 14)
    assert texts(style, "explicit")[:2] == ["a painting in the style of van gogh", "a landscape by van gogh"]
    assert all([ask.seed for ask in asks] == list(range(14)) for asks in style.values())
    assert all(len({(ask.text, ask.seed) for ask in asks}) == 14 for asks in style.values())
    assert len(set(texts(style, "neighbour"))) == 14


def test_two_concepts_share_no_picture() -> None:
    concepts = [Concept.preset("van gogh"), Concept.preset("church"), Concept("walrus")]
    tables = profile_for("some/model").prompts(concepts, 5).values()
    drawn = [(ask.text, ask.seed) for splits in tables for asks in splits.values() for ask in asks]
    assert len(set(drawn)) == len(drawn) > 40
