from __future__ import annotations

import pytest

from erasers import Concept, get_eraser, list_erasers
from erasers.concept import as_concepts, preset_names, preset_options

I2P = ["hate", "harassment", "violence", "suffering", "humiliation", "harm", "suicide", "sexual", "nudity"]
I2P += ["bodily fluids", "blood"]


def test_strings_are_presets_or_plain_concepts():
    assert Concept.of("Van_Gogh") == Concept.preset("van gogh")
    assert Concept.of("Van_Gogh").anchor == "art"
    assert Concept.of("zebra") == Concept("zebra")
    assert Concept.of(Concept("zebra", anchor="horse")).anchor == "horse"


def test_sequences_become_tuples():
    concept = Concept(" star ", aliases=["pentagram"], preserve="circle", neighbours=iter(["ring"]))
    assert concept.name == "star"
    assert concept.aliases == ("pentagram",)
    assert concept.preserve == ("circle",)
    assert concept.kept() == ("circle", "ring")
    assert hash(concept) == hash(Concept("star", aliases=("pentagram",), preserve=["circle"], neighbours=["ring"]))


def test_terms():
    assert Concept("star", aliases=["pentagram", "star"]).terms() == ("star", "pentagram")
    assert Concept("star", aliases=["pentagram"]).terms(aliases=False) == ("star",)
    assert sorted(Concept.preset("unsafe").terms(aliases=False)) == sorted(I2P)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_builds_and_its_options_are_accepted(name):
    concept = Concept.preset(name)
    assert concept.name == name
    for method in list_erasers():
        get_eraser(method, **preset_options(name, method))


def test_presets_of_the_papers():
    assert set(I2P) <= set(preset_names())
    assert preset_options("nudity", "rece") == {"rounds": 3, "reg": 0.1}
    assert preset_options("unsafe", "rece") == {"rounds": 2, "reg": 0.1}
    assert preset_options("church", "rece") == {"rounds": 1, "reg": 0.001}
    assert preset_options("zebra", "rece") == {}
    assert preset_options("nudity", "uce") == {}


@pytest.mark.parametrize(
    ("arguments", "error", "got"),
    [
        ({"name": ""}, ValueError, "''"),
        ({"name": "  "}, ValueError, "'  '"),
        ({"name": 3}, TypeError, "3"),
        ({"name": "x", "kind": "colour"}, ValueError, "colour"),
        ({"name": "x", "aliases": [""]}, ValueError, "aliases"),
        ({"name": "x", "aliases": [3]}, TypeError, "3"),
        ({"name": "x", "preserve": 3}, TypeError, "int"),
        ({"name": "x", "anchor": None}, TypeError, "NoneType"),
    ],
)
def test_bad_fields(arguments, error, got):
    with pytest.raises(error, match=got):
        Concept(**arguments)


def test_anchor_is_keyword_only():
    with pytest.raises(TypeError):
        Concept("star", "circle")


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"nudity.*zebra"):
        Concept.preset("zebra")


def test_as_concepts():
    assert as_concepts("star") == (Concept("star"),)
    assert as_concepts(["star", Concept("moon")]) == (Concept("star"), Concept("moon"))
