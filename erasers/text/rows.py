"""Prompts, and the choice of rows of their states.

Row policies, for a prompt whose last subject token is at position i (the first token's, 0, for the empty prompt):

* `last`: row i alone.
* `tail`: row i and all that follow, with the end and padding tokens that the denoiser sees.
* `all`: every row that the denoiser sees.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch

from erasers.concept import Concept
from erasers.concept.words import article, with_article

Rows: TypeAlias = Literal["last", "tail", "all"]

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


@dataclass(frozen=True)
class Segment:
    """States of one prompt by one text encoder (or by several side by side).

    Args:
        states: `[tokens, d]`: up to the last subject token under the policy `last`, else all that the denoiser sees.
        last: Position of the last subject token.
    """

    states: torch.Tensor
    last: int

    def rows(self, policy: Rows) -> torch.Tensor:
        """The rows `[n, d]` of that policy."""
        if policy == "last":
            return self.states[self.last : self.last + 1]
        return self.states[self.last :] if policy == "tail" else self.states


@dataclass(frozen=True)
class Encoded:
    """What a denoiser gets to see of one prompt.

    Args:
        segments: Sequences of states that stand one after the other.
        pooled: The vector `[d]` beside them, where it was asked for.
    """

    segments: tuple[Segment, ...]
    pooled: torch.Tensor | None = None

    def rows(self, policy: Rows) -> torch.Tensor:
        """The rows `[n, d]` of that policy, of all segments."""
        return torch.cat([segment.rows(policy) for segment in self.segments])


def pair_rows(concept: Encoded, anchor: Encoded, policy: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the concept and, row by row, what each of them becomes; both `[n, d]`.

    `tail` starts both at their last subject token and takes as many rows as the longer prompt has left. `all` starts
    both at their first row. Where the denoiser does not see padding, and prompts have states of different lengths, the
    last row of the anchor stands for what it lacks. An empty anchor starts at its first row under `last` and `tail`.
    """
    pairs = [_pair(old, new, policy) for old, new in zip(concept.segments, anchor.segments, strict=True)]
    return torch.cat([old for old, _ in pairs]), torch.cat([new for _, new in pairs])


def _pair(concept: Segment, anchor: Segment, policy: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    old, new = concept.rows(policy), anchor.rows(policy)
    if policy == "tail" and len(concept.states) == len(anchor.states):
        count = min(len(old), len(new))
        return old[:count], new[:count]
    index = torch.arange(len(old)).clamp(max=len(new) - 1)
    return old, new[index]


def templates_for(concept: Concept, templates: Sequence[str] | Literal["auto"]) -> tuple[str, ...]:
    """The prompt patterns to use for a concept: given ones, else its own, else those of its kind."""
    return (concept.templates or TEMPLATES[concept.kind]) if templates == "auto" else tuple(templates)


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
