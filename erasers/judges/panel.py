"""Several judges for one set of pictures, each for what it sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from erasers.judges import Fingerprint, Judge, Takes, Verdict

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


class Jury:
    """Several judges as one, where each prompt is of the first that sees what it wants, or of nobody.

    Args:
        members: At least one, in the order in which they are asked.
    """

    takes = Takes()

    def __init__(self, members: Sequence[Judge]) -> None:
        if not members:
            raise ValueError("expected at least one judge, got none")
        self.panel = Panel(members)

    @property
    def name(self) -> str:
        """Those of the members."""
        return "+".join(member.name for member in self.panel.members)

    @property
    def fingerprint(self) -> Fingerprint:
        """That of the only member, or of all of them in their order."""
        first, *others = self.panel.members
        if not others:
            return first.fingerprint
        members = {member.name: member.fingerprint.to_json() for member in self.panel.members}
        return Fingerprint({}, members, None, "the first that sees what is wanted", "each its own")

    @property
    def sees(self) -> Mapping[str, Sequence[str]]:
        """What any member sees."""
        sees: dict[str, tuple[str, ...]] = {}
        for member in self.panel.members:
            for name, values in member.sees.items():
                sees[name] = tuple(dict.fromkeys((*sees.get(name, ()), *values)))
        return sees

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Any]) -> list[Verdict]:
        """See `Judge.judge`; a prompt that nobody sees is unscored."""
        return self.panel.judge(images, [prompt.wants for prompt in prompts])
