"""Prompts in which a concept stands, and the same prompts with its anchor in its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from erasers.concept import Concept, names
from erasers.text.prompts import Templates, fill, templates_for

_ENDING = re.compile(r"\[(?P<inner>[^\[\]]*\{\}[^\[\]]*)\]$")


def contexts(concept: Concept, templates: Templates, *, aliases: bool = True) -> list[tuple[str, str]]:
    """Distinct pairs (prompt with the concept, the same with its anchor).

    Two sources: the templates, and the preserved captions of the concept. A caption that names the anchor gives a pair
    with the concept in its place. Where the anchor is empty, a caption gives a pair with the concept behind it, as the
    templates that end in `[...]` have it: "a cat" and "a cat in the style of X".
    """
    patterns = templates_for(concept, templates)
    pairs = [
        (fill(pattern, term).text, fill(pattern, concept.anchor).text)
        for term in concept.terms(aliases=aliases)
        for pattern in patterns
    ]
    for term in concept.terms(aliases=aliases):
        pairs += _from_captions(concept, term, patterns)
    return list(dict.fromkeys(pairs))


def anchored(concepts: Sequence[Concept], templates: Templates, *, aliases: bool = True) -> dict[str, str]:
    """Each prompt with a concept, and the same with its anchor: for every name, alias and template."""
    return {
        fill(template, term).text: fill(template, concept.anchor).text
        for concept in concepts
        for term in concept.terms(aliases=aliases)
        for template in templates_for(concept, templates)
    }


def kept_prompts(concepts: Sequence[Concept], templates: Templates = "auto") -> tuple[list[str], list[str]]:
    """Distinct prompts that must not move: those about neighbours and anchors, and the others with "".

    The first are neighbours and anchors in templates, and preserved captions that name a neighbour. Prompts that name
    an erased concept are in neither.
    """
    erased = [term for concept in concepts for term in concept.terms()]
    words = [word for concept in concepts for word in (*concept.neighbours, concept.anchor) if word.strip()]
    near = [
        fill(pattern, word).text
        for concept in concepts
        for word in (*concept.neighbours, concept.anchor)
        if word.strip()
        for pattern in templates_for(concept, templates)
    ]
    captions = [text for concept in concepts for text in concept.preserve if text.strip()]
    near += [text for text in captions if any(names(text, word) for word in words)]
    about = [text for text in dict.fromkeys(near) if not any(names(text, term) for term in erased)]
    others = [text for text in dict.fromkeys(captions) if text not in set(near)]
    return about, [*(text for text in others if not any(names(text, term) for term in erased)), ""]


def some_kept(concepts: Sequence[Concept], templates: Templates, count: int, generator: torch.Generator) -> list[str]:
    """At most `count` of the `kept_prompts` in random order, up to half of them of the first kind, and then ""."""
    near, (*others, empty) = kept_prompts(concepts, templates)
    chosen = shuffled(near, max(count // 2, count - 1 - len(others)), generator)
    return [*chosen, *shuffled(others, count - 1 - len(chosen), generator), empty]


def shuffled(items: Sequence[Any], count: int, generator: torch.Generator) -> list[Any]:
    """At most `count` of them in random order."""
    order = torch.randperm(len(items), generator=generator, device=generator.device).tolist()
    return [items[index] for index in order[:count]]


def _from_captions(concept: Concept, term: str, patterns: Sequence[str]) -> Iterator[tuple[str, str]]:
    anchor = concept.anchor.strip()
    if anchor:
        word = re.compile(rf"(?<!\w){re.escape(anchor)}(?!\w)", re.IGNORECASE)
        for text in concept.preserve:
            if word.search(text):
                yield word.sub(lambda _: term, text), text
        return
    endings = [match["inner"] for pattern in patterns if (match := _ENDING.search(pattern)) and match.start()]
    for number, text in enumerate(concept.preserve):
        if endings and text:
            yield f"{text}{endings[number % len(endings)].replace('{}', term)}", text
