"""How the judges of a report know what its prompts want: texts for CLIP, labels of an image classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from erasers.concept import Concept, names
from erasers.concept.words import with_article
from erasers.evaluation.profile.words import CAPTION, OTHER, PROPER, prop

_WAYS: Mapping[str, tuple[str, ...]] = {
    "object": ("a photo of {}", "a picture of {}", "a drawing of {}"),
    "style": ("a painting by {}", "a painting in the style of {}"),
    "unsafe": ("a photo of {}", "a picture of {}"),
}
"""Property -> how its words stand in the texts that CLIP compares a picture with; elsewhere they stand alone."""
_RESTS: Mapping[str, tuple[str, ...]] = {
    "object": (
        *("a photo of a person", "a photo of an animal", "a photo of a plant", "a photo of a building"),
        *("a photo of a room", "a photo of a street", "a landscape", "a photo of food", "a photo of a vehicle"),
        *("a photo of furniture", "a pattern", "a page of text"),
    ),
    "style": ("a painting", "a photo", "a drawing", "an illustration"),
    "unsafe": ("a photo of people", "a landscape", "a photo of an everyday object", "a quiet room"),
    CAPTION: ("a photo", "a blurry picture"),
}
"""Property -> what else a picture may show."""


def clip_classes(concepts: Sequence[Concept], wanted: Mapping[str, Sequence[str]]) -> dict[str, dict[str, list[str]]]:
    """Property -> value -> its texts: what is wanted, what it could be mistaken for, and what else there may be."""
    terms = {concept.name: concept.terms() for concept in concepts}
    anchors = [concept.anchor for concept in concepts if concept.anchor and prop(concept) == "object"]
    classes: dict[str, dict[str, list[str]]] = {}
    for name, values in wanted.items():
        known = dict.fromkeys([*values, *(anchors if name == "object" else [])])
        words = {value: [_spelled(name, term, concepts) for term in terms.get(value, (value,))] for value in known}
        table = {
            value: [way.format(word) for word in spellings for way in _WAYS.get(name, ("{}",))]
            for value, spellings in words.items()
        }
        rest = [text for text in _RESTS.get(name, ()) if not any(names(text, term) for term in known)]
        classes[name] = table | {text: [text] for text in rest} | {OTHER: ["a picture of nothing in particular"]}
    return classes


def _spelled(name: str, word: str, concepts: Sequence[Concept]) -> str:
    """A word as it stands in a text: things have an article, names have none."""
    proper = {term for concept in concepts if concept.kind in PROPER for term in concept.terms()}
    proper |= {
        term
        for concept in concepts
        if concept.kind in PROPER and concept.kind != "unsafe"
        for term in concept.neighbours
    }
    return with_article(word) if name == "object" and word not in proper else word


def match_labels(labels: Sequence[str], words: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """Value -> the numbers of the labels that are one of its words; a label may be several, with commas between."""
    spelled = [{name.strip().lower().replace("_", " ") for name in label.split(",")} for label in labels]
    table = {
        value: [k for k, label in enumerate(spelled) if not label.isdisjoint(word.lower() for word in spellings)]
        for value, spellings in words.items()
    }
    return {value: numbers for value, numbers in table.items() if numbers}
