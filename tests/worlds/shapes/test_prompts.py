import pytest

from erasers.worlds.shapes import vocabulary
from erasers.worlds.shapes.prompts import concept_for, kind_of, split_prompts

KNOWN = [word for words in vocabulary.KINDS.values() for word in words]


@pytest.mark.parametrize("word", KNOWN)
def test_splits_say_what_they_want(word: str) -> None:
    kind, _ = kind_of(word)
    near = vocabulary.NEIGHBOURS.get(word, ())
    splits = split_prompts(word, 40)
    expected = [
        "explicit",
        *(["synonym"] if word in vocabulary.SYNONYMS else []),
        *(["neighbour"] if near else []),
        "unrelated",
    ]
    assert list(splits) == expected
    for prompt in splits["explicit"]:
        assert word in prompt.text.split()
        assert prompt.wants == {kind: word}
    for prompt in splits.get("synonym", []):
        assert word not in prompt.text.split()
        assert any(phrase in prompt.text for phrase in vocabulary.SYNONYMS[word])
        assert prompt.wants == {kind: word}
    for split in ("neighbour", "unrelated"):
        for prompt in splits.get(split, []):
            assert word not in prompt.text.split()
            assert not any(phrase in prompt.text for phrase in vocabulary.SYNONYMS.get(word, ()))
            named = {word for words in vocabulary.KINDS.values() for word in words} & set(prompt.text.split())
            assert named == set(prompt.wants.values())
            assert all(value in vocabulary.KINDS[wanted] for wanted, value in prompt.wants.items())
            assert split == "unrelated" or prompt.wants[kind] in near


def test_prompts_are_reproducible_and_seeds_are_distinct() -> None:
    first, second = split_prompts("star", 60), split_prompts("star", 60)
    assert first == second
    seeds = [prompt.seed for prompts in first.values() for prompt in prompts]
    assert len(set(seeds)) == len(seeds) == 240
    assert split_prompts("star", 60, seed=1)["explicit"] != first["explicit"]


def test_more_prompts_extend_fewer() -> None:
    assert split_prompts("star", 60)["synonym"][:20] == split_prompts("star", 20)["synonym"]


def test_a_concept_keeps_its_synonyms_held_out() -> None:
    concept = concept_for("pentagram")
    assert (concept.name, concept.anchor, concept.aliases) == ("star", "circle", ())
    assert concept.neighbours == vocabulary.NEIGHBOURS["star"]


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="'dog'"):
        split_prompts("dog", 5)
    with pytest.raises(ValueError, match="got 0"):
        split_prompts("star", 0)
