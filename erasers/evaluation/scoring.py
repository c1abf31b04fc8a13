"""Scores of result files, from their samples and those of the unedited row alone: written, checked and compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from erasers.atomic import write_atomically
from erasers.evaluation import pillars
from erasers.evaluation.bootstrap import Difference
from erasers.evaluation.leaderboard_files import Result, read_result
from erasers.evaluation.pillars import OVERALL, Scheme
from erasers.evaluation.records import UNEDITED, Record
from erasers.evaluation.statistics import holm
from erasers.evaluation.store import canonical

Records = Mapping[str, Sequence[Record]]
"""Case -> what its pictures came to."""

_TOLERANCE = 2e-6
"""Scores are kept to six decimals; another machine may round the last one the other way."""


@dataclass(frozen=True)
class Comparison:
    """One score of two rows.

    Args:
        name: A pillar of the scheme, or `overall`.
        first: Score of the first row.
        second: Score of the second.
        difference: First minus second on the pictures that both were scored on.
        p: Adjusted for all scores that are compared.
    """

    name: str
    first: float
    second: float
    difference: Difference
    p: float


def scores(row: Records, unedited: Records, scheme: Scheme) -> dict[str, Any]:
    """`cases`: case -> scores, and `all`, over the cases that the row has; see `Pillars.to_json`.

    Raises:
        ValueError: A sample without its counterpart in the unedited row.
    """
    found = {case: pillars.measure(row[case], unedited.get(case, ()), scheme).to_json() for case in sorted(row)}
    return {"cases": found, "all": pillars.measure(_pool(row, row), _pool(unedited, row), scheme).to_json()}


def records(case: str, samples: Sequence[Mapping[str, Any]]) -> list[Record]:
    """What the samples of a result file came to."""
    return [
        Record(sample["split"], f"{case}/{sample['text']}", sample["seed"], _number(sample["value"]))
        for sample in samples
    ]


def write_result(path: Path, data: Mapping[str, Any]) -> None:
    """Write a result file; the same data give the same bytes."""
    text = canonical(data, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def verify(path: Path) -> list[str]:
    """Compute the scores of a result file anew from its samples and those of `unedited.json` beside it.

    Returns:
        A line for each number that differs; none when all are right.

    Raises:
        ValueError: A damaged file, or files that do not belong together.
        OSError: A file that cannot be read.
    """
    row = read_result(path)
    again = scores(_by_case(row), _by_case(_unedited(row)), row.scheme)
    return list(_differences("scores", json.loads(path.read_bytes())["scores"], again))


def rescore(folder: Path, scheme: Scheme) -> list[Path]:
    """Compute the scores of every result file of a task anew, with the scheme that the task has now.

    Raises:
        FileNotFoundError: The task has no results there.
        ValueError: A damaged file, or files that do not belong together.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"no results in {folder}; erase bench run writes them")
    rows = [read_result(path) for path in paths]
    fresh = [scores(_by_case(row), _by_case(_unedited(row)), scheme) for row in rows]
    for path, one in zip(paths, fresh, strict=True):
        data = json.loads(path.read_bytes())
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(scheme).items()}
        write_result(path, data | {"task": data["task"] | {"scheme": plain}, "scores": one})
    return paths


def compare(first: Path, second: Path) -> list[Comparison]:
    """The pillars of two rows of one task and their mean, paired picture by picture, with p-values after Holm.

    Only cases that both rows have count. Scores that one of them lacks are left out.

    Raises:
        ValueError: Rows of different tasks, models or judges, rows without a common case, or a damaged file.
        OSError: A file that cannot be read.
    """
    rows = read_result(first), read_result(second)
    if unlike := [key for key in rows[0].shared if rows[0].shared[key] != rows[1].shared[key]]:
        raise ValueError(f"expected two rows of one task, model and judge, got another {unlike[0]} in {second}")
    common = [case for case in rows[0].cases if case in rows[1].cases]
    if not common:
        raise ValueError(f"expected rows with a case in common, got none in {first} and {second}")
    one, other, base = (_pool(_by_case(row), common) for row in (*rows, _unedited(rows[0])))
    scheme = rows[0].scheme
    found = pillars.compare(one, other, base, scheme)
    names = [name for name in (*scheme.pillars, OVERALL) if name in found]
    adjusted = holm({name: found[name].p for name in names})
    mine, theirs = (_values(some, base, scheme) for some in (one, other))
    return [Comparison(name, mine[name], theirs[name], found[name], adjusted[name]) for name in names]


def _values(some: Sequence[Record], base: Sequence[Record], scheme: Scheme) -> dict[str, float]:
    measured = pillars.measure(some, base, scheme)
    values = {name: estimate.value for name, estimate in measured.pillars.items()}
    return values | ({OVERALL: measured.overall.value} if measured.overall else {})


def _unedited(row: Result) -> Result:
    """The unedited row beside a row, which it may be itself."""
    path = row.path.with_name(f"{UNEDITED}.json")
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; scores are computed from it and {row.path.name} together")
    base = read_result(path)
    if unlike := [key for key in row.shared if row.shared[key] != base.shared[key]]:
        raise ValueError(f"expected {row.path} and {path} with one {unlike[0]}, got two; run the task again")
    return base


def _by_case(row: Result) -> dict[str, list[Record]]:
    return {name: [sample.record for sample in case.samples] for name, case in row.cases.items()}


def _pool(row: Records, cases: Mapping[str, Any] | Sequence[str]) -> list[Record]:
    """The records of some cases together."""
    return [record for case in sorted(cases) for record in row.get(case, ())]


def _number(value: bool | float | None) -> float | None:
    return None if value is None else float(value)


def _differences(where: str, old: Any, new: Any) -> Iterator[str]:
    """Where two plain values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(f"{where}.{key}", old.get(key), new.get(key))
    elif isinstance(old, float) and isinstance(new, float):
        if not abs(old - new) <= _TOLERANCE:
            yield f"{where} is {old}, the samples give {new}"
    elif old != new:
        yield f"{where} is {json.dumps(old)}, the samples give {json.dumps(new)}"
