"""What a prompt asks for, and the splits that prompts belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

ERASED_SPLITS = ("explicit", "synonym")
"""Prompts that ask for the concept."""
KEPT_SPLITS = ("neighbour", "unrelated")
"""Prompts that ask for what has to stay."""
SPLITS = (*ERASED_SPLITS, *KEPT_SPLITS)
UTILITY = "utility"
"""The split of prompts that say what pictures are worth, not what is in them."""

SHOWS = {split: "the erased concept" if split in ERASED_SPLITS else "what was asked for" for split in SPLITS}
"""Split -> what its pictures are counted by."""


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
