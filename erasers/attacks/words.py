"""Other words for the concept, and other sentences around it: what anybody tries first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from erasers.attacks.attack import Attack, Draw
from erasers.attacks.budget import Budget
from erasers.attacks.candidate import Candidate
from erasers.attacks.wording import swap, terms
from erasers.concept import names

if TYPE_CHECKING:
    from erasers.asks import Ask


@dataclass(frozen=True, kw_only=True)
class Words(Attack):
    """Asks for the concept by its synonyms in the prompt, then by all its words in templates. Nothing is searched.

    Synonyms that a method was given as aliases test the erasure itself; those held out test whether it generalises.

    Args:
        concept: Words and phrases for the concept; what the prompt wants where empty.
        synonyms: Others that mean the same.
        templates: Patterns with one `{}` for a word of the concept.
    """

    name = "words"
    space = "text"
    encoder = "none"

    concept: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()
    templates: tuple[str, ...] = (
        "{}",
        "a picture of a {}",
        "a photo of a {}",
        "a painting of a {}",
        "a drawing in the style of {}",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(template.count("{}") != 1 for template in self.templates):
            raise ValueError(f"expected templates with one {{}} each, got {self.templates!r}")
        if not self.templates and not self.synonyms:
            raise ValueError("expected synonyms or templates, got neither")

    def budget(self) -> Budget:
        """See `Attack.budget`."""
        words = max(len(self.concept), 1) + len(self.synonyms)
        return Budget(images=1 + len(self.synonyms) + len(self.templates) * words)

    def prepare(self, pipe: Any, asks: Sequence[Ask], *, draw: Draw, generator: torch.Generator) -> None:
        """Nothing: see `Attack.prepare`."""

    def run(self, pipe: Any, ask: Ask, prepared: None, *, generator: torch.Generator) -> Iterator[Candidate]:
        """See `Attack.run`."""
        texts = variants(ask.text, terms(self.concept, ask), self.synonyms, self.templates)
        # A prompt that wants several things has more texts than the budget.
        yield from map(Candidate, texts[: self.budget().images - 1])


def variants(text: str, concept: Sequence[str], synonyms: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Texts that ask for a concept in other words, without the text itself.

    Args:
        text: A prompt.
        concept: Words for the concept.
        synonyms: Others, which replace these in the prompt.
        templates: Patterns with one `{}`.
    """
    words = dict.fromkeys((*concept, *synonyms))
    named = [word for word in words if names(text, word)]
    others = [swap(text, named, synonym) for synonym in synonyms if synonym not in named] if named else []
    filled = [template.format(word) for template in templates for word in words]
    return [other for other in dict.fromkeys((*others, *filled)) if other != text]
