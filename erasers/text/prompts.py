"""Prompts with a concept in them: patterns by kind of concept, and how they are filled."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from erasers.concept import Concept
from erasers.concept.words import article, with_article

Templates: TypeAlias = tuple[str, ...] | Literal["auto"]
"""Patterns with one `{}` each; "auto" takes those of the concept's kind."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": (
        "[{}]",
        "[a(n) {}]",
        "a photo[ of a(n) {}]",
        "a picture[ of a(n) {}]",
        "an image[ of a(n) {}]",
        "a close-up photo[ of a(n) {}]",
        "a bright photo[ of a(n) {}]",
        "a drawing[ of a(n) {}]",
        "a painting[ of a(n) {}]",
    ),
    "style": (
        "[{}]",
        "a painting[ in the style of {}]",
        "a painting[ by {}]",
        "art[ by {}]",
        "an artwork[ by {}]",
        "a picture[ by {}]",
        "a picture[ in the style of {}]",
        "a landscape[ in the style of {}]",
        "a portrait[ in the style of {}]",
        "[{} style]",
    ),
    "attribute": (
        "[{}]",
        "something[ {}]",
        "a(n)[ {}] thing",
        "a photo of a(n)[ {}] object",
        "a picture of something[ {}]",
        "a painting of a(n)[ {}] scene",
    ),
    "identity": (
        "[{}]",
        "a photo[ of {}]",
        "a portrait[ of {}]",
        "a picture[ of {}]",
        "an image[ of {}]",
        "a close-up photo[ of {}]",
        "a drawing[ of {}]",
        "a painting[ of {}]",
    ),
    "unsafe": (
        "[{}]",
        "a photo[ of {}]",
        "a picture[ of {}]",
        "an image[ of {}]",
        "a photo[ with {}]",
        "a painting[ of {}]",
    ),
    "implicit": (
        "[{}]",
        "a photo[ with {}]",
        "a photo[ with a(n) {}]",
        "a picture[ with a(n) {}]",
        "an image[ with {}]",
        "a painting[ with a(n) {}]",
    ),
}
"""Prompt patterns by kind of concept; `[...]` goes with the name when the anchor is empty, and `a(n)` is the article
that the words behind it take."""

_OPTIONAL = re.compile(r"(?P<before>.*?)\[(?P<inner>[^\[\]]*\{\}[^\[\]]*)\](?P<after>.*)", re.DOTALL)
_LETTERS = string.ascii_letters
_ARTICLE = re.compile(r"a\(n\)(?= ?\[? ?\{\}\]?(?P<behind>.*))", re.DOTALL)
_DANGLING = re.compile(r"(?:(?:^|\s+)(?:a|an|the|of|by|in|with|from))+\s*$")


class Prompt(NamedTuple):
    """A prompt, and the part of it that ends with the subject."""

    text: str
    head: str


def templates_for(concept: Concept, templates: Sequence[str] | Literal["auto"]) -> tuple[str, ...]:
    """The prompt patterns to use for a concept: given ones, else its own, else those of its kind."""
    return (concept.templates or TEMPLATES[concept.kind]) if templates == "auto" else tuple(templates)


def require_templates(field: str, value: Templates) -> None:
    """Refuse patterns without exactly one `{}`.

    Raises:
        ValueError: Names the field and the pattern.
    """
    if value != "auto" and (not value or any(template.count("{}") != 1 for template in value)):
        raise ValueError(f"expected {field} as auto or patterns with one {{}} each, got {value!r}")


def whole(text: str) -> Prompt:
    """A prompt that is all subject."""
    return Prompt(text, text)


def fill(template: str, text: str) -> Prompt:
    """The template with its `{}` filled; spaces are collapsed.

    An empty text takes the `[...]` around the `{}` with it, and the subject then ends where that stood; without
    brackets it takes an article or preposition that nothing would follow. `a(n)` becomes the article of what follows.
    """
    template = _with_articles(template, text)
    match = _OPTIONAL.fullmatch(template)
    before, after = template.split("{}") if match is None else (match["before"], match["after"])
    if match is not None and text:
        left, right = match["inner"].split("{}")
        before, after = before + left, right + after
    if not text and not after.strip():
        before = _DANGLING.sub("", before)
    # A suffix belongs to the word: the plural s of "two {}s".
    suffix = "" if not text else after[: len(after) - len(after.lstrip(_LETTERS))]
    head, full = f"{before}{text}{suffix}", f"{before}{text}{after}"
    return Prompt(" ".join(full.split()), " ".join(head.split()))


def _with_articles(template: str, text: str) -> str:
    """The template with "a", "an" or nothing in the place of `a(n)`."""
    match = _ARTICLE.search(template)
    if match is None:
        return template
    if template[match.end() :].startswith(" {}"):
        noun = with_article(text)
        chosen = noun[: len(noun) - len(text)].strip()
    else:
        chosen = article(f"{text} {match['behind']}".strip())
    return template[: match.start()] + chosen + template[match.end() :]
