"""Judges: what is in a picture. A judge gives one `Verdict` a picture; scores are made from verdicts elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Verdict:
    """What a judge says about one picture.

    Args:
        value: True when the picture shows what its prompt wants; None when the judge could not say (unscored).
        probability: The judge's confidence that it shows it, in [0, 1], where the judge has one.
        reason: Why the picture is unscored, or what else the judge has to say.
    """

    value: bool | None
    probability: float | None = None
    reason: str = ""


class Judge(Protocol):
    """Anything that looks at pictures. A broken picture gets an unscored verdict, never a guess."""

    @property
    def name(self) -> str:
        """Name under which its verdicts are reported."""

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Any]) -> list[Verdict]:
        """One verdict a picture, in order.

        Args:
            images: Pictures.
            prompts: One for each picture: its text and what it wants, e.g. `erasers.shapes.prompts.Prompt`.
        """
