"""Prompts about a concept of the world, split as the benchmark reads them, with what a picture must show."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from erasers.asks import SPLITS
from erasers.concept import Concept, Kind
from erasers.worlds.shapes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    MARK,
    NEIGHBOURS,
    OBJECTS,
    PLAIN,
    SIZES,
    STYLES,
    SYNONYMS,
    canonical,
    phrase,
)

PRESERVED = 200
"""Captions that an erasure preserves."""
Maker: TypeAlias = Callable[[random.Random], tuple[str, dict[str, str]]]

ANCHORS: Mapping[str, str] = {
    "star": "circle",
    "circle": "square",
    "square": "circle",
    "triangle": "circle",
    "cross": "circle",
    "heart": "circle",
    "crescent": "square",
    "ring": "square",
    "hexagon": "star",
    "arrow": "circle",
    "red": "green",
    "orange": "blue",
    "yellow": "purple",
    "green": "red",
    "blue": "yellow",
    "purple": "green",
}
"""Object or colour -> what it becomes when nobody says otherwise; styles and the mark become nothing ("")."""

TEMPLATES: Mapping[Kind, tuple[str, ...]] = {
    "object": ("{}", "a {}", "a picture of a {}", "a red {}", "a blue {} on a white background"),
    "style": ("[{}]", "a picture[ in the style of {}]", "art[ by {}]", "a painting[ by {}]", "[{} style]"),
    "attribute": ("[{}]", "a[ {}] thing", "a picture of a[ {}] object", "something[ {}]"),
    "implicit": ("[{}]", "a picture[ with {}]", "a picture[ with a {}]"),
}
"""Prompt patterns in words of the world, by kind of concept."""


@dataclass(frozen=True)
class Prompt:
    """A caption, the seed of its noise, and the property values that the judge must see for a positive verdict."""

    text: str
    wants: Mapping[str, str]
    seed: int


def kind_of(word: str) -> tuple[str, str]:
    """The kind (object, colour, style or mark) and the canonical word; see `vocabulary.canonical` for the errors."""
    return canonical(word)


def concept_for(word: str) -> Concept:
    """The concept of a word of the world with its kind, anchor and neighbours.

    It preserves a sample of captions that lack the concept, as others preserve a sample of COCO captions. Synonyms are
    neither erased nor preserved: they stay held out unless the caller adds them as aliases.
    """
    kind, name = canonical(word)
    kinds: dict[str, Kind] = {"object": "object", "colour": "attribute", "style": "style", "mark": "implicit"}
    rng = random.Random(f"{name}/concept")
    return Concept(
        name,
        anchor=ANCHORS.get(name, ""),
        kind=kinds[kind],
        templates=TEMPLATES[kinds[kind]],
        neighbours=NEIGHBOURS.get(name, ()),
        preserve=_captions(rng, PRESERVED, name),
    )


def _captions(rng: random.Random, n: int, avoid: str) -> tuple[str, ...]:
    """n distinct captions in canonical words, without the word `avoid`."""
    texts: dict[str, None] = {}
    while len(texts) < n:
        text = phrase(
            thing=rng.choice([o for o in OBJECTS if o != avoid]),
            colour=rng.choice([c for c in COLOURS if c != avoid]) if rng.random() < 0.8 else "",
            style=rng.choice([s for s in STYLES[1:] if s != avoid]) if rng.random() < 0.4 else "",
            background=rng.choice(BACKGROUNDS) if rng.random() < 0.4 else "",
            size=rng.choice(SIZES) if rng.random() < 0.3 else "",
        )
        texts[text] = None
    return tuple(texts)


def _ask(rng: random.Random, kind: str, word: str, avoid: Sequence[str]) -> tuple[str, dict[str, str]]:
    """A prompt that says `word` for the property `kind`, in a context of words that are not to be avoided.

    Returns:
        The text, and the context: property -> value.
    """
    context = {}
    if kind != "object":
        context["object"] = rng.choice([o for o in OBJECTS if o not in avoid])
    if kind != "colour" and rng.random() < 0.8:
        context["colour"] = rng.choice([c for c in COLOURS if c not in avoid])
    if kind in ("object", "colour") and rng.random() < 0.3:
        context["style"] = rng.choice([s for s in STYLES[1:] if s not in avoid])
    words = context | ({} if kind == "mark" else {kind: word})
    text = phrase(
        thing=words["object"],
        colour=words.get("colour", ""),
        style=words.get("style", ""),
        background=rng.choice(BACKGROUNDS) if rng.random() < 0.5 else "",
        size=rng.choice(SIZES) if rng.random() < 0.3 else "",
        mark=kind == "mark",
    )
    return text, context


def _erased(kind: str, words: Sequence[str], value: str, rng: random.Random) -> tuple[str, dict[str, str]]:
    """Ask for the concept by one of `words`; what is wanted is the concept alone."""
    return _ask(rng, kind, rng.choice(words), (value,))[0], {kind: value}


def _kept(kind: str, words: Sequence[str], avoid: Sequence[str], rng: random.Random) -> tuple[str, dict[str, str]]:
    """Ask for one of `words`; object, colour and style are wanted where they are named."""
    value = rng.choice(words)
    text, context = _ask(rng, kind, value, avoid)
    return text, {kind: value, **context}


def _unrelated(kind: str, name: str, rng: random.Random) -> tuple[str, dict[str, str]]:
    """Ask for anything but the concept and its neighbours."""
    away = (name, *NEIGHBOURS.get(name, ()))
    other = rng.choice(["object", "colour", "style"])
    return _kept(other, [word for word in KINDS[other] if word not in away], away, rng)


def split_prompts(concept: str, n: int, *, seed: int = 0) -> dict[str, list[Prompt]]:
    """n prompts a split for a word of the world; the same arguments give the same prompts and seeds.

    `explicit` names the concept by its canonical word and `synonym` by another word that the captions use for it; both
    want the concept itself. `neighbour` asks for a thing of the same kind that looks most like it and `unrelated` for
    anything else; both want the object, colour and style that they name. A split that has no words is absent.

    Raises:
        ValueError: the world has no such word, or n < 1.
    """
    if n < 1:
        raise ValueError(f"expected at least one prompt a split, got {n}")
    kind, name = canonical(concept)
    near = NEIGHBOURS.get(name, ())

    makers: dict[str, Maker] = {"explicit": partial(_erased, kind, (name,), name)}
    if name in SYNONYMS:
        makers["synonym"] = partial(_erased, kind, SYNONYMS[name], name)
    if near:
        makers["neighbour"] = partial(_kept, kind, near, (name,))
    makers["unrelated"] = partial(_unrelated, kind, name)
    splits = {}
    for split, make in makers.items():
        rng = random.Random(f"{name}/{split}/{seed}")
        first = seed * 10_000_019 + SPLITS.index(split) * 1_000_003
        splits[split] = [Prompt(*make(rng), seed=first + k) for k in range(n)]
    return splits


def clip_texts() -> dict[str, dict[str, tuple[str, ...]]]:
    """Property -> value -> captions of it."""
    styles = ["" if style == PLAIN else style for style in STYLES]
    return {
        "object": {
            word: tuple(phrase(thing=word, colour=colour, style=style) for colour in COLOURS for style in styles)
            for word in OBJECTS
        },
        "colour": {word: (phrase(thing="shape", colour=word),) for word in COLOURS},
        "style": {
            word: tuple(phrase(thing=thing, style=style) for thing in ("shape", *OBJECTS))
            for word, style in zip(STYLES, styles, strict=True)
        },
        "mark": {"none": (phrase(thing="shape"),), MARK: (phrase(thing="shape", mark=True),)},
    }


__all__ = ["ANCHORS", "Prompt", "clip_texts", "concept_for", "kind_of", "split_prompts"]
