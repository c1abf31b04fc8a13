"""What a prompt asks for, and the splits that prompts belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

ERASED_SPLITS = ("explicit", "synonym")


KEPT_SPLITS = ("neighbour", "unrelated")


SPLITS = (*ERASED_SPLITS, *KEPT_SPLITS)


class Ask(Protocol):
    """What a prompt has to say: its text, what a judge must see in the picture, and the seed of its noise."""

    @property
    def text(self) -> str:
        """The prompt."""

    @property
    def wants(self) -> Mapping[str, str]:
        """Property -> value that the picture must show."""

    @property
    def seed(self) -> int:
        """Seed of the noise."""


@dataclass(frozen=True)
class PlainPrompt:
    """A prompt that wants at most what is written beside it."""

    text: str
    seed: int
    wants: Mapping[str, str] = field(default_factory=dict)


UTILITY = "utility"
