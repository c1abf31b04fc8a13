"""Prompts about a concept of the world, split as the benchmark reads them, with what a picture must show."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from erasers.concept import Concept, Kind
from erasers.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    MARK,
    NEIGHBOURS,
    OBJECTS,
    SIZES,
    STYLES,
    SYNONYMS,
    canonical,
    phrase,
)

Maker: TypeAlias = Callable[[random.Random], tuple[str, dict[str, str]]]

SPLITS = ("explicit", "synonym", "neighbour", "unrelated")

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


@dataclass(frozen=True)
class Prompt:
    """A caption, the seed of its noise, and the property values that the judge must see for a positive verdict."""

    text: str
    wants: Mapping[str, str]
    seed: int


def kind_of(word: str) -> tuple[str, str]:
    """The kind (object, colour, style or mark) and the canonical word; see `world.canonical` for the errors."""
    return canonical(word)


def concept_for(word: str) -> Concept:
    """The concept of a word of the world with its kind, anchor and neighbours.

    Synonyms are not passed on: they stay held out unless the caller adds them as aliases.
    """
    kind, name = canonical(word)
    kinds: dict[str, Kind] = {"object": "object", "colour": "attribute", "style": "style", "mark": "implicit"}
    return Concept(name, anchor=ANCHORS.get(name, ""), kind=kinds[kind], neighbours=NEIGHBOURS.get(name, ()))


def _ask(rng: random.Random, kind: str, word: str, value: str, named: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """A prompt that says `word` for the property `kind`, beside the other `named` properties.

    Returns:
        The text, and the wanted value of `kind`.
    """
    words = {"thing": named.get("object", ""), "colour": named.get("colour", ""), "style": named.get("style", "")}
    if kind != "mark":
        words["thing" if kind == "object" else kind] = word
    text = phrase(
        **words,
        background=rng.choice(BACKGROUNDS) if rng.random() < 0.5 else "",
        size=rng.choice(SIZES) if rng.random() < 0.3 else "",
        mark=kind == "mark",
    )
    return text, {kind: value}


def _about(rng: random.Random, kind: str, word: str, value: str, avoid: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Ask for one property, in a context drawn from the words of other kinds that are not to be avoided."""
    context = {}
    if kind != "object":
        context["object"] = rng.choice([o for o in OBJECTS if o not in avoid])
    if kind != "colour" and rng.random() < 0.8:
        context["colour"] = rng.choice([c for c in COLOURS if c not in avoid])
    if kind in ("object", "colour") and rng.random() < 0.3:
        context["style"] = rng.choice([s for s in STYLES[1:] if s not in avoid])
    return _ask(rng, kind, word, value, context)


def _unrelated(kind: str, name: str, rng: random.Random) -> tuple[str, dict[str, str]]:
    """Ask for a value of any kind but the erased one's closest: neither the concept nor one of its neighbours."""
    away = (name, *NEIGHBOURS.get(name, ()))
    other = rng.choice(["object", "colour", "style"])
    value = rng.choice([word for word in KINDS[other] if word not in away])
    return _about(rng, other, value, value, away)


def split_prompts(concept: str, n: int, *, seed: int = 0) -> dict[str, list[Prompt]]:
    """n prompts a split for a word of the world; the same arguments give the same prompts and seeds.

    `explicit` names the concept by its canonical word and `synonym` by another word that the captions use for it; both
    want the concept itself. `neighbour` asks for a thing of the same kind that looks most like it and `unrelated` for
    anything else; both want what they ask for. A split that has no words is absent.

    Raises:
        ValueError: the world has no such word, or n < 1.
    """
    if n < 1:
        raise ValueError(f"expected at least one prompt a split, got {n}")
    kind, name = canonical(concept)
    near = NEIGHBOURS.get(name, ())

    def of(words: Sequence[str], value: str | None, rng: random.Random) -> tuple[str, dict[str, str]]:
        word = rng.choice(words)
        return _about(rng, kind, word, value or word, (name,))

    makers: dict[str, Maker] = {"explicit": partial(of, (name,), name)}
    if name in SYNONYMS:
        makers["synonym"] = partial(of, SYNONYMS[name], name)
    if near:
        makers["neighbour"] = partial(of, near, None)
    makers["unrelated"] = partial(_unrelated, kind, name)
    splits = {}
    for split, make in makers.items():
        rng = random.Random(f"{name}/{split}/{seed}")
        first = seed * 10_000_019 + SPLITS.index(split) * 1_000_003
        splits[split] = [Prompt(*make(rng), seed=first + k) for k in range(n)]
    return splits


__all__ = ["ANCHORS", "MARK", "SPLITS", "Prompt", "concept_for", "kind_of", "split_prompts"]
