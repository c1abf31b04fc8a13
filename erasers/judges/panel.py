"""Several judges for one set of pictures, each for what it sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image

from erasers.judges import Judge, Verdict

UNSEEN = "no judge here sees what the prompt wants"
"""Reason of a verdict that nobody was asked for."""


class Panel:
    """Every picture is judged by the first member that sees all that its prompt wants, or by nobody.

    Args:
        members: The judges, in the order in which they are asked.
    """

    def __init__(self, members: Sequence[Judge]) -> None:
        self.members = tuple(members)

    def member(self, wants: Mapping[str, str]) -> Judge | None:
        """Who judges a prompt that wants this; None where nobody sees it, or where it wants nothing."""
        seen = (
            judge for judge in self.members if all(value in judge.sees.get(name, ()) for name, value in wants.items())
        )
        return next(seen, None) if wants else None

    def judge(self, images: Sequence[Image.Image], wants: Sequence[Mapping[str, str]]) -> list[Verdict]:
        """One verdict a picture, in order; those of nobody have the reason `UNSEEN`.

        Args:
            images: Pictures.
            wants: Property -> value, one table a picture.
        """
        verdicts = [Verdict(None, reason=UNSEEN)] * len(images)
        asked = [self.member(table) for table in wants]
        for judge in self.members:
            mine = [i for i, member in enumerate(asked) if member is judge]
            answers = judge.judge([images[i] for i in mine], [_Wanted(wants[i]) for i in mine]) if mine else []
            for i, answer in zip(mine, answers, strict=True):
                verdicts[i] = answer
        return verdicts


class _Wanted:
    """What of a prompt a judge reads."""

    def __init__(self, wants: Mapping[str, str]) -> None:
        self.wants = wants
