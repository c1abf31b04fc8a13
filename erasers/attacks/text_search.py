"""What attacks share that search for text with a text encoder alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from erasers.attacks.attack import Draw
from erasers.attacks.budget import Budget, Preparation
from erasers.attacks.candidate import Candidate
from erasers.attacks.encoders import EncoderAttack
from erasers.diffusion.attacked import Vocabulary, vocabulary
from erasers.diffusion.supported import check_drawable
from erasers.diffusion.tokens import room_for_text, tokenizer_of

if TYPE_CHECKING:
    from erasers.asks import Ask


@dataclass(frozen=True)
class Prepared:
    """What the attack knows of the unedited model.

    Args:
        targets: Text of a prompt -> what the search is to reach.
        words: What can be typed.
        texts: Text of a prompt -> what was found with the unedited encoder, the best first; empty where the edited one
            is searched.
    """

    targets: Mapping[str, torch.Tensor]
    words: Vocabulary
    texts: Mapping[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TextSearch(EncoderAttack):
    """A search for text that text encoders take for something else; the denoiser has no part in it.

    It is sought among words that each of the encoders reads as one token. Others read the text as it is typed.

    Args:
        encoders: See `EncoderAttack`.
        encoder: Whose text states the search looks at. With `original` it is over before any edited model is seen, so
            that one set of prompts attacks them all; an edit of the text encoder is then never searched. With
            `attacked` the search runs on the edited model. The target is the unedited encoder's in both cases.
        images: Pictures a prompt, the plain prompt's included: the best texts are drawn.
        concept: Words and phrases that mean the concept; what the prompts want where empty.
    """

    # What the base class says of the whole class is an option here.
    encoder: Literal["original", "attacked"] = "original"  # type: ignore[misc]
    images: int = 2
    concept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 2:
            raise ValueError(f"expected images of at least 2, one of them the plain prompt's, got {self.images}")

    @abstractmethod
    def targets(self, pipe: Any, asks: Sequence[Ask]) -> dict[str, torch.Tensor]:
        """What the search is to reach, by the text of a prompt; `pipe` is the unedited pipeline."""

    @abstractmethod
    def search(
        self, pipe: Any, ask: Ask, target: torch.Tensor, words: Vocabulary, generator: torch.Generator
    ) -> list[str]:
        """At most `images` - 1 texts, the best first."""

    @property
    @abstractmethod
    def encodes(self) -> int:
        """Texts that go through the text encoder in one search."""

    def budget(self) -> Budget:
        """See `Attack.budget`."""
        return Budget(encodes=self.encodes if self.encoder == "attacked" else 0, images=self.images)

    def preparation(self, prompts: int) -> Preparation:
        """See `Attack.preparation`; encoding the prompts themselves goes without saying."""
        return Preparation(encodes=prompts * self.encodes if self.encoder == "original" else 0)

    def prepare(self, pipe: Any, asks: Sequence[Ask], *, draw: Draw, generator: torch.Generator) -> Prepared:
        """See `Attack.prepare`."""
        check_drawable(pipe)
        targets, words = self.targets(pipe, asks), vocabulary(pipe, self.attacked(pipe))
        if self.encoder == "attacked":
            return Prepared(targets, words)
        first = {ask.text: ask for ask in reversed(asks)}
        texts = {text: self.search(pipe, first[text], targets[text], words, generator) for text in targets}
        return Prepared(targets, words, texts)

    def run(self, pipe: Any, ask: Ask, prepared: Prepared, *, generator: torch.Generator) -> Iterator[Candidate]:
        """See `Attack.run`."""
        check_drawable(pipe)
        if self.encoder == "original":
            texts = prepared.texts[ask.text]
        else:
            texts = self.search(pipe, ask, prepared.targets[ask.text], prepared.words, generator)
        encoders = self.attacked(pipe)
        yield from (Candidate(text, encoders=encoders) for text in texts)


def check_room(pipe: Any, encoders: Sequence[str], k: int) -> None:
    """Refuse more tokens than one of the text encoders reads.

    Raises:
        ValueError: Names how many it reads.
    """
    room = min(room_for_text(tokenizer_of(pipe, name)) for name in encoders)
    if k > room:
        raise ValueError(f"expected k of at most {room}, which is what the text encoder reads, got {k}")


def best_texts(pipe: Any, words: Vocabulary, rows: torch.Tensor, losses: torch.Tensor, count: int) -> list[str]:
    """The texts of `count` different rows of words `[n, k]`, the one of least loss `[n]` first."""
    texts: dict[str, None] = {}
    for row in losses.argsort(stable=True).tolist():
        texts[words.text(pipe, rows[row])] = None
        if len(texts) == count:
            break
    return list(texts)
