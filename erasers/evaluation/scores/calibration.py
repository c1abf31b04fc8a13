"""How often a judge is right: measured on pictures whose content is known, and stored for the pinned profiles.

The stored figures lie beside the profiles in `erasers/judges/calibration.json`; `benchmarks/judges.py` writes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from erasers.evaluation.scores.metrics import Score, score
from erasers.files.reading import parse_json
from erasers.judges import Judge

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Truth:
    """What is asked about a picture, and the right answer.

    Args:
        wants: Property -> value, as a prompt would want them.
        shown: Whether the picture shows all of them.
    """

    wants: Mapping[str, str]
    shown: bool


@dataclass(frozen=True)
class Calibration:
    """How often a judge is right, with 95 % Wilson intervals.

    Args:
        sensitivity: Share of the pictures that show it in which the judge sees it; None when none was scored.
        specificity: Share of the pictures that do not show it in which the judge does not see it; likewise.
        n: Scored pictures of both kinds.
    """

    sensitivity: Score | None
    specificity: Score | None
    n: int

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values; what is None is absent."""
        shares = {"sensitivity": self.sensitivity, "specificity": self.specificity}
        return {"n": self.n} | {name: share.to_json() for name, share in shares.items() if share}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_json`."""
        shares = {name: Score(**fields[name]) for name in ("sensitivity", "specificity") if name in fields}
        return cls(shares.get("sensitivity"), shares.get("specificity"), fields["n"])


def measure(judge: Judge, images: Sequence[Image.Image], truths: Sequence[Truth]) -> Calibration:
    """Let a judge answer questions whose answers are known.

    Pictures that it cannot score count in neither share; the scores say how many they are.

    Args:
        judge: The judge.
        images: Pictures.
        truths: One for each picture.

    Raises:
        ValueError: Lengths differ, or the judge cannot see what is asked.
    """
    verdicts = judge.judge(images, truths)
    pairs = list(zip(verdicts, truths, strict=True))
    sensitivity = score(verdict for verdict, truth in pairs if truth.shown)
    missed = score(verdict for verdict, truth in pairs if not truth.shown)
    specificity = missed and Score(1 - missed.value, missed.n, 1 - missed.high, 1 - missed.low, missed.unscored)
    return Calibration(sensitivity, specificity, sum(verdict.value is not None for verdict in verdicts))


def stored(judge: Judge, wants: Mapping[str, str]) -> Calibration | None:
    """What has been measured of a judge for prompts that want this; None when nothing has ("not measured").

    Figures of a judge whose fingerprint has changed since count as not measured.

    Args:
        judge: The judge.
        wants: Property -> value. One property has figures of its own for every value; several together have those of
            the properties, over all values.
    """
    fields = stored_by(judge.name, judge.fingerprint.digest, [wants]).get(key(wants))
    return Calibration.from_json(fields) if fields else None


def stored_all(judge: Judge, wants: Iterable[Mapping[str, str]]) -> dict[str, dict[str, Any]]:
    """Key -> what has been measured of a judge, as plain values, for all that some prompts want."""
    return stored_by(judge.name, judge.fingerprint.digest, wants)


def stored_by(name: str, fingerprint: str, wants: Iterable[Mapping[str, str]]) -> dict[str, dict[str, Any]]:
    """As `stored_all`, of a judge that need not be here."""
    entry = _table().get(name, {})
    if entry.get("fingerprint") != fingerprint:
        return {}
    fields = {wanted: entry["wants"].get(wanted) for wanted in sorted(set(map(key, wants)))}
    return {wanted: Calibration.from_json(errors).to_json() for wanted, errors in fields.items() if errors}


def key(wants: Mapping[str, str]) -> str:
    """Under which figures are stored: `object=star`, or `colour+object` for several properties."""
    return "+".join(sorted(wants)) if len(wants) != 1 else "=".join(*wants.items())


@lru_cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = parse_json(files("erasers.judges").joinpath("calibration.json").read_bytes(), "calibration")
    return table
