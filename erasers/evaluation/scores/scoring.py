"""Scores of result files, from their samples and those of the unedited row alone: written, checked and compared.

What was measured in pictures (`drift`, `clip`, ... of a sample, `figures` of sets) is taken as the file gives it, as
verdicts are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from erasers.evaluation.checks import lists
from erasers.evaluation.scores import pillars
from erasers.evaluation.scores.bootstrap import Difference
from erasers.evaluation.scores.details import details
from erasers.evaluation.scores.pillars import OVERALL, Rise, Scheme
from erasers.evaluation.scores.records import UNEDITED, Record, attack_records, sample_records
from erasers.evaluation.scores.results import ALL, Result, read_result, write_result
from erasers.evaluation.scores.statistics import holm

Cases = Mapping[str, Mapping[str, Any]]
"""Case -> what result files have of it: `samples`, and `attacks` where there were any."""

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


def scores(
    cases: Cases,
    unedited: Cases,
    scheme: Scheme,
    *,
    plans: Mapping[str, Mapping[str, Any]] | None = None,
    figures: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    calibration: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """`cases`: case -> scores, and `all`, over the cases that the row has; see `Pillars.to_json` and `details.details`.

    Args:
        cases: Of the row.
        unedited: Of the unedited row.
        scheme: Of the task.
        plans: Label -> attack, as `Task.to_json` has them.
        figures: Case or `all` -> figures of its sets of pictures.
        calibration: Key -> measured errors of the judge, as `calibration.stored_all` gives them.

    Raises:
        ValueError: A sample without its counterpart in the unedited row, or a number that is none.
    """

    def score(names: Sequence[str], title: str) -> dict[str, Any]:
        kid = Rise.among((figures or {}).get(title, ()))
        measured = pillars.measure(_pool(cases, names, plans), _pool(unedited, names), scheme, kid=kid).to_json()
        more = details({case: cases[case]["samples"] for case in names}, calibration or {})
        return measured | {"details": measured["details"] | {key: detail.to_json() for key, detail in more.items()}}

    return {"cases": {case: score([case], case) for case in sorted(cases)}, "all": score(sorted(cases), ALL)}


def records(case: str, facts: Mapping[str, Any], plans: Mapping[str, Mapping[str, Any]] | None = None) -> list[Record]:
    """What the samples of a case came to, and its attacks where plans are given."""
    attacked = attack_records(case, facts.get("attacks", {}), plans) if plans else []
    return [*sample_records(case, facts["samples"]), *attacked]


def differences(row: Result, base: Result) -> list[str]:
    """Compute the scores of a row anew from its samples and those of the unedited row.

    Returns:
        A line for each number that differs; none when all are right.

    Raises:
        ValueError: A damaged file.
    """
    return list(unlike("scores", row.data["scores"], _again(row, base, row.scheme), "the samples give"))


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
    fresh = [_again(row, unedited(row), scheme) for row in rows]
    for row, anew in zip(rows, fresh, strict=True):
        data = dict(row.data)
        write_result(row.path, data | {"task": data["task"] | {"scheme": lists(asdict(scheme))}, "scores": anew})
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
    scheme, base = rows[0].scheme, _pool(unedited(rows[0]).data["cases"], common)
    pools = [_pool(row.data["cases"], common, row.task.get("attacks")) for row in rows]
    kids = _rise(rows[0], common), _rise(rows[1], common)
    differences = pillars.compare(pools[0], pools[1], base, scheme, kids=kids)
    names = [name for name in (*scheme.pillars, OVERALL) if name in differences]
    adjusted = holm({name: differences[name].p for name in names})
    mine, theirs = (_values(pool, base, scheme, kid) for pool, kid in zip(pools, kids, strict=True))
    return [Comparison(name, mine[name], theirs[name], differences[name], adjusted[name]) for name in names]


def _values(pool: Sequence[Record], base: Sequence[Record], scheme: Scheme, kid: Rise | None) -> dict[str, float]:
    measured = pillars.measure(pool, base, scheme, kid=kid)
    values = {name: estimate.value for name, estimate in measured.pillars.items()}
    return values | ({OVERALL: measured.overall.value} if measured.overall else {})


def unedited(row: Result) -> Result:
    """The unedited row beside a row, which it may be itself."""
    path = row.path.with_name(f"{UNEDITED}.json")
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; scores are computed from it and {row.path.name} together")
    base = read_result(path)
    if unlike := [key for key in row.shared if row.shared[key] != base.shared[key]]:
        raise ValueError(f"expected {row.path} and {path} with one {unlike[0]}, got two; run the task again")
    return base


def _again(row: Result, unedited: Result, scheme: Scheme) -> dict[str, Any]:
    """The scores of a row anew."""
    facts: dict[str, Any] = {"plans": row.task.get("attacks"), "figures": row.figures}
    try:
        calibration = row.data["judge"].get("calibration")
        return scores(row.data["cases"], unedited.data["cases"], scheme, **facts, calibration=calibration)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{row.path} is damaged: {type(error).__name__} {error}") from error


def _rise(row: Result, cases: Sequence[str]) -> Rise | None:
    """The rise of the KID over just these cases; None where the row has none."""
    name = ALL if len(cases) == len(row.cases) else cases[0] if len(cases) == 1 else ""
    return Rise.among(row.figures.get(name, ()))


def _pool(cases: Cases, names: Sequence[str], plans: Mapping[str, Mapping[str, Any]] | None = None) -> list[Record]:
    """The records of some cases together."""
    return [record for case in sorted(names) if case in cases for record in records(case, cases[case], plans)]


def unlike(where: str, old: Any, new: Any, source: str) -> Iterator[str]:
    """A line wherever two plain values differ; numbers may differ in the last digit that is kept."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from unlike(f"{where}.{key}", old.get(key), new.get(key), source)
    elif isinstance(old, float) and isinstance(new, float):
        if not abs(old - new) <= _TOLERANCE:
            yield f"{where} is {old}, {source} {new}"
    elif old != new:
        yield f"{where} is {json.dumps(old)[:200]}, {source} {json.dumps(new)[:200]}"
