"""What was measured of methods on embedded models: `measured.json`, which `benchmarks/measured.py` makes of results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.resources import files
from typing import Any

FILE = "measured.json"
ALL = "all"


@dataclass(frozen=True)
class Share:
    """A score between 0 and 1 with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Figures:
    """Scores of a method on a concept, or on all of a task; None was not measured.

    Args:
        erasure: How much less often the concept is drawn when it is asked for.
        texts: 1 - success of the worst attack by text.
        probes: 1 - success of the worst attack of all, those included that change embeddings, noise or weights.
        worst: Name of that attack.
        neighbours: How often similar concepts are still drawn.
        specificity: How often unrelated ones are.
        utility: How well pictures look.
    """

    erasure: Share | None = None
    texts: Share | None = None
    probes: Share | None = None
    worst: str = ""
    neighbours: Share | None = None
    specificity: Share | None = None
    utility: Share | None = None


@dataclass(frozen=True)
class Measured:
    """A method on a task.

    Args:
        name: Of the method, the preset or the stack.
        figures: By concept, and for `ALL`.
        nbytes: Of a patch, the mean over concepts.
        seconds: To fit one.
    """

    name: str
    figures: Mapping[str, Figures]
    nbytes: float
    seconds: float | None


@dataclass(frozen=True)
class Many:
    """Several concepts in one patch.

    Args:
        name: Of the method.
        count: Concepts.
        erasure: 1 - how often they are still drawn.
        kept: How often others are still drawn.
        nbytes: Of the patch.
        seconds: To fit it.
    """

    name: str
    count: int
    erasure: Share
    kept: Share
    nbytes: float
    seconds: float


@dataclass(frozen=True)
class Table:
    """A task and its methods.

    Args:
        task: Name and version.
        model: The embedded model.
        denoiser: Class of its denoiser.
        kinds: Kind of each of its concepts: object, style and so on.
        tuned: Those on which settings of some methods were chosen.
        rows: The methods.
        many: Several concepts at once on the same model; no attacks were made there.
    """

    task: str
    model: str
    denoiser: str
    kinds: Mapping[str, str]
    tuned: Sequence[str]
    rows: Sequence[Measured]
    many: Sequence[Many] = ()


def tables() -> tuple[Table, ...]:
    """What the package knows to be measured, one table for each embedded model."""
    content = json.loads(files(__package__).joinpath(FILE).read_text(encoding="utf-8"))
    return tuple(_table(entry) for entry in content)


def to_json(known: Sequence[Table]) -> str:
    """The content of the file, a line for each table; scores have three digits, as value, low and high."""
    lines = [json.dumps(_plain(table), sort_keys=True) for table in known]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _table(entry: Mapping[str, Any]) -> Table:
    rows = [
        Measured(
            row["name"], {case: _figures(own) for case, own in row["figures"].items()}, row["nbytes"], row["seconds"]
        )
        for row in entry["rows"]
    ]
    many = [
        Many(own["name"], own["count"], Share(*own["erasure"]), Share(*own["kept"]), own["nbytes"], own["seconds"])
        for own in entry["many"]
    ]
    return Table(entry["task"], entry["model"], entry["denoiser"], entry["kinds"], entry["tuned"], rows, many)


def _figures(own: Mapping[str, Any]) -> Figures:
    shares: dict[str, Any] = {key: Share(*value) for key, value in own.items() if key != "worst"}
    return Figures(**shares, worst=own.get("worst", ""))


def _plain(value: Any) -> Any:
    """As JSON-able values: numbers are rounded, and what was not measured is left out, but for seconds."""
    if isinstance(value, Share):
        return [round(number, 3) for number in (value.value, value.low, value.high)]
    if is_dataclass(value):
        return _plain({field.name: getattr(value, field.name) for field in fields(value)})
    if isinstance(value, Mapping):
        return {key: _plain(own) for key, own in value.items() if own is not None or key == "seconds"}
    if isinstance(value, (list, tuple)):
        return [_plain(own) for own in value]
    return round(value, 3) if isinstance(value, float) else value
