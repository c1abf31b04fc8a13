"""Articles, plurals and hypernyms, and the templates that use them."""

from __future__ import annotations

import re

import pytest

from erasers import Concept
from erasers.concept import preset_names
from erasers.concept.words import FALLBACK, hypernym, kinds_in, kinds_of, mentions, with_article
from erasers.text.prompts import TEMPLATES, fill, templates_for
from erasers.worlds.shapes.prompts import concept_for


@pytest.mark.parametrize(
    ("noun", "phrase"),
    [
        ("church", "a church"),
        ("apple", "an apple"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("hourglass", "an hourglass"),
        ("one-way street", "a one-way street"),
        ("glasses", "glasses"),
        ("bus", "a bus"),
        ("something", "something"),
        ("clothing", "clothing"),
        ("the moon", "the moon"),
        ("Pikachu", "Pikachu"),
        ("", ""),
    ],
)
def test_articles(noun, phrase):
    assert with_article(noun) == phrase


@pytest.mark.parametrize(
    ("name", "anchor"),
    [
        ("church", "building"),
        ("Beagles", "dog"),
        ("wolves", "animal"),
        ("red sports car", "sports car"),
        ("hot dog", "food"),
        ("police officer", "person"),
        ("flurbl", FALLBACK),
        ("building", FALLBACK),
    ],
)
def test_an_object_becomes_what_it_is_a_kind_of(name, anchor):
    assert hypernym(name) == anchor
    assert Concept(name).anchor == anchor


def test_chains_of_kinds_end():
    assert list(kinds_of("beagle")) == ["dog", "animal"]
    assert kinds_in("two puppies and a sea horse") >= {"dog", "fish", "animal"}


@pytest.mark.parametrize(
    ("text", "term", "found"),
    [
        ("Two Stars in the sky", "star", True),
        ("a starfish", "star", False),
        ("three wolves", "wolf", True),
        ("a crowd of women", "woman", True),
        ("puppies", "puppy", True),
        ("golden retrievers on a beach", "golden retriever", True),
    ],
)
def test_mentions(text, term, found):
    assert mentions(text, term) is found


def test_anchors_by_kind():
    assert Concept("some painter", kind="style").anchor == ""
    assert Concept("Jane Doe", kind="identity").anchor == "a person"
    assert Concept("gore", kind="unsafe").anchor == ""
    assert Concept("dragon", anchor="").anchor == Concept("dragon", anchor=" ").anchor == ""


@pytest.mark.parametrize("name", preset_names())
def test_every_object_preset_has_an_anchor_and_no_sentence_is_cut_short(name):
    concept = Concept.preset(name)
    assert concept.kind not in ("object", "identity") or concept.anchor not in ("", FALLBACK)
    for template in templates_for(concept, "auto"):
        assert not re.search(r"\b(an?|of|by|in|with)$", fill(template, concept.anchor).text)


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("anchor", ["", "apple", "something", "a dog"])
def test_templates_of_real_models_are_english(kind, anchor):
    texts = [fill(template, anchor) for template in TEMPLATES[kind]]
    assert not any(
        re.search(r"\ba [aeiou]|\ban [^aeiou]|a\(n\)|\b(an?|of|by|in|with)$", text.text) for text in texts[1:]
    )
    assert all(text.text.startswith(text.head) for text in texts)
    assert any("photo" in text.text or "painting" in text.text for text in texts)


def test_church_becomes_a_picture_of_a_building():
    church = Concept.preset("church")
    pairs = [tuple(fill(template, text).text for text in ("church", church.anchor)) for template in TEMPLATES["object"]]
    assert ("a photo of a church", "a photo of a building") in pairs
    assert not any(anchor.endswith(" a") for _, anchor in pairs)
    # Templates of a user's own, too.
    assert fill("a picture of a {}", "").text == "a picture"
    assert fill("art by {}", "").text == "art"


def test_words_of_the_embedded_world_bring_their_own_templates():
    assert templates_for(concept_for("star"), "auto")[3] == "a red {}"
    assert [fill(template, "orange").text for template in templates_for(concept_for("red"), "auto")] == [
        "orange",
        "a orange thing",
        "a picture of a orange object",
        "something orange",
    ]
    assert templates_for(concept_for("star"), ("{}",)) == ("{}",)
