"""The result files of benchmark tasks: what is in them, and how they are read and written.

A file is one row of a task, `<task>@<version>/<row>.json`; `unedited.json` is beside it. It is a table of

    format      2; rows of format 1 do not record how they were drawn, nor the hashes of their pictures
    task        the task as it was run
    library     version of this library
    model       fingerprint of the unedited model
    drawn       scheduler, dtype, libraries, versions and device that drew it
    judge       name, fingerprint, and calibration: its measured errors, where they are known
    attacked    label -> the components that the attack is on, where the pipeline has several text encoders
    row         name, kind, method and options
    cases       case -> model: fingerprint; patch: digest, bytes, edit_seconds, or null
                        samples: split, text, seed, wants, image (its key in the store), pixels (their hash), value,
                                 probability, reason (where there is no value); drift, gold, agrees, clip where measured
                        attacks: label -> an outcome for each prompt, see `_check_outcome`
    figures     case or `all` -> figures of sets of pictures: metric, extractor, value, n, and error, low, high
    scores      cases: case -> scores; all: scores over all cases; they follow from the rest of the two files

What is damaged or does not belong together is refused by its name.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erasers.evaluation.checks import tuples
from erasers.evaluation.scores.bootstrap import Estimate
from erasers.evaluation.scores.pillars import OVERALL, Scheme
from erasers.evaluation.scores.records import UNEDITED, Record, attack_records, sample_records
from erasers.evaluation.store import canonical
from erasers.files.atomic import write_atomically
from erasers.files.reading import read_json, value_of

FORMAT = 2
FORMATS = (1, FORMAT)
REFERENCE = "reference"
KINDS = (UNEDITED, REFERENCE, "method", "patch")
ALL = "all"
REDRAWN = "redrawn"
"""Folder beside result files of what drawing their pictures again came to."""

_IMAGE = re.compile(r"[0-9a-f]{64}")
_NUMBER = (int, float)
_NONE = type(None)


@dataclass(frozen=True)
class JudgedSample:
    """One judged picture; `image` is its key in the store."""

    record: Record
    text: str
    image: str


@dataclass(frozen=True)
class JudgedCase:
    """Concepts that are erased together: what the patch cost, None where there is no patch, and what was drawn.

    Args:
        nbytes: Of the patch.
        seconds: To make it.
        samples: The judged pictures.
        attacks: Label -> what the attack did to each prompt, as the file has it.
        records: Of all pictures and attacks.
    """

    nbytes: int | None
    seconds: float | None
    samples: Sequence[JudgedSample]
    attacks: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    records: Sequence[Record] = ()


@dataclass(frozen=True)
class Scores:
    """Pillars (with `overall`) and details that have a value, and why a pillar has none."""

    pillars: Mapping[str, Estimate]
    details: Mapping[str, Estimate]
    missing: Mapping[str, str]


@dataclass(frozen=True)
class Result:
    """A row of a task: `scores` has every case and `ALL`; `shared` is what the rows of one task agree on.

    `figures` are numbers of sets of pictures, by case and for `ALL`, as the file has them; `data` is the whole file.
    """

    path: Path
    name: str
    kind: str
    options: Mapping[str, Any]
    scheme: Scheme
    shared: Mapping[str, Any]
    cases: Mapping[str, JudgedCase]
    scores: Mapping[str, Scores]
    figures: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def task(self) -> Mapping[str, Any]:
        """The task as it was read."""
        task: Mapping[str, Any] = self.shared["task"]
        return task

    @property
    def title(self) -> str:
        """Name and version of the task, and its limit where it was cut short."""
        limit = self.task.get("limit")
        return f"{self.task['name']}@{self.task['version']}" + (f"-limit{limit}" if limit else "")

    @property
    def adult(self) -> bool:
        """Whether pictures are of adult content."""
        return bool(self.task.get("adult"))

    def records(self) -> list[Record]:
        """Records of all cases."""
        return [record for case in self.cases.values() for record in case.records]


def read_tasks(paths: Sequence[Path]) -> dict[str, list[Result]]:
    """Task -> its rows, both in order: row 0 (`unedited`), references, then the others by name.

    Args:
        paths: Result files, or folders with `<task>@<version>/<row>.json`, in any order; twice the same counts once.

    Raises:
        ValueError: No results, a damaged file, rows of one name, of another task under the same name, with cases that
            the unedited row lacks, or no unedited row; the message names the file.
        OSError: A file that cannot be read.
    """
    tasks: dict[str, list[Result]] = {}
    for result in map(read_result, result_files(paths)):
        tasks.setdefault(result.title, []).append(result)
    return {title: _checked(title, tasks[title]) for title in sorted(tasks)}


def result_files(paths: Sequence[Path]) -> list[Path]:
    """The result files among files and folders, sorted, each once.

    Raises:
        ValueError: There are none.
    """
    files = sorted({file.resolve() for path in paths for file in _files(path)})
    if not files:
        raise ValueError(f"expected result files, or folders <task>@<version> with some, got {_names(paths)}")
    return files


def setting_text(result: Result) -> str:
    """How the pictures of a row were drawn, in words."""
    drawn = result.data.get("drawn")
    if drawn is None:
        return "not recorded"
    versions = ", ".join(f"{name} {version}" for name, version in sorted(drawn["versions"].items()))
    return f"{drawn['scheduler'].get('class')} in {drawn['dtype']} on {drawn['device']}, {versions}"


def drawn_apart(first: Path, second: Path) -> list[str]:
    """A line when two rows were drawn with another scheduler, dtype, device or version; none when they were not."""
    said = [setting_text(read_result(path)) for path in (first, second)]
    if said[0] == said[1]:
        return []
    return [f"drawn differently: A {said[0]}; B {said[1]}; what differs may come from that"]


def redrawn(result: Result) -> int:
    """How many pictures of a row were drawn again and held; 0 where none were, or the file is another since."""
    path = result.path.parent / REDRAWN / result.path.name
    if not path.is_file():
        return 0
    try:
        mark = read_json(path)
        count: int = value_of(mark, "samples", int)
        return count if mark.get("file") == hashlib.sha256(result.path.read_bytes()).hexdigest() else 0
    except ValueError as error:
        raise ValueError(f"{path} is not what drawing again came to: {error}") from None


def read_result(path: Path) -> Result:
    """One result file.

    Raises:
        ValueError: It is damaged or of another format.
        OSError: It cannot be read.
    """
    try:
        return _result(path, read_json(path))
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} is not a result file, or it is damaged: {error}") from error


def write_result(path: Path, data: Mapping[str, Any]) -> None:
    """Write a result file; the same data give the same bytes."""
    text = canonical(data, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return [*path.glob("*@*/*.json"), *(path.glob("*.json") if "@" in path.name else ())]


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths)) or "none"


def _checked(title: str, rows: list[Result]) -> list[Result]:
    rows = sorted(rows, key=lambda row: (min(KINDS.index(row.kind), 2), row.name))
    first, names = rows[0], {row.name: row for row in rows}
    if [row.kind for row in rows].count(UNEDITED) != 1:
        raise ValueError(
            f"expected one unedited row among the results of {title}, got {_names([r.path for r in rows])}"
        )
    for row in rows:
        if names[row.name] is not row:
            raise ValueError(
                f"expected rows of {title} with names of their own, got {row.path}, {names[row.name].path}"
            )
        for key in (key for key in first.shared if row.shared[key] != first.shared[key]):
            raise ValueError(f"expected results of {title} with one {key}, got others in {first.path} and {row.path}")
        if extra := [case for case in row.cases if case not in first.cases]:
            raise ValueError(f"expected cases of {first.path} in {row.path}, got {', '.join(extra)}")
    return rows


def _result(path: Path, data: Any) -> Result:
    if value_of(data, "format", int) not in FORMATS:
        raise ValueError(f"expected format {' or '.join(map(str, FORMATS))}, got {data['format']}")
    _check_record(data)
    _check_components(data)
    task, row, judge = (value_of(data, key, dict) for key in ("task", "row", "judge"))
    for table, key, kind in ((task, "name", str), (task, "version", int), (task, "scheme", dict), (judge, "name", str)):
        value_of(table, key, kind)
    if value_of(row, "kind", str) not in KINDS:
        raise ValueError(f"expected a kind among {', '.join(KINDS)}, got {row['kind']!r}")
    plans = _plans(task)
    cases = {name: _case(name, case, plans) for name, case in sorted(value_of(data, "cases", dict).items())}
    scores = value_of(data, "scores", dict)
    tables = value_of(scores, "cases", dict) | {ALL: value_of(scores, ALL, dict)}
    if not cases or ALL in cases or set(tables) != {*cases, ALL}:
        raise ValueError(f"expected scores of the cases {', '.join(cases)}, got {', '.join(sorted(tables))}")
    return Result(
        path=path,
        name=value_of(row, "name", str),
        kind=row["kind"],
        options=value_of(row, "options", (dict, _NONE)) or {},
        scheme=_scheme(task["scheme"]),
        shared={"task": task, "model": value_of(data, "model", object), "judge": judge},
        cases=cases,
        scores={name: _scores(table) for name, table in tables.items()},
        figures={name: _figures(figures) for name, figures in _optional(data, "figures").items()},
        data=data,
    )


def _check_record(data: Any) -> None:
    """Refuse a row that does not say how it was drawn, unless it is of format 1."""
    if data["format"] == 1:
        return
    drawn = value_of(data, "drawn", dict)
    for key, kind in (("scheduler", dict), ("dtype", str), ("libraries", list), ("versions", dict), ("device", str)):
        value_of(drawn, key, kind)
    for case in value_of(data, "cases", dict).values():
        value_of(case, "model", str)
        for sample in value_of(case, "samples", list):
            if not _IMAGE.fullmatch(value_of(sample, "pixels", str)):
                raise ValueError(f"expected the sha256 of pixels, 64 hexadecimal digits, got {sample['pixels']!r:.80}")


def _check_components(data: Any) -> None:
    """Refuse what attacks are on, where it is no list of names."""
    table = _optional(data, "attacked")
    for label in table:
        if not all(isinstance(name, str) for name in value_of(table, label, list)):
            raise ValueError(f"expected names of components that {label} is on, got {str(table[label])[:80]!r}")


def _scheme(data: Mapping[str, Any]) -> Scheme:
    return Scheme(**tuples(data))


def _plans(task: Any) -> Mapping[str, Mapping[str, Any]]:
    """Label -> attack of a task."""
    plans = _optional(task, "attacks")
    for label in plans:
        plan = value_of(plans, label, dict)
        value_of(plan, "control", (str, _NONE))
        value_of(plan, "space", str)
        _optional(plan, "options")
    return plans


def _case(name: str, data: Any, plans: Mapping[str, Mapping[str, Any]]) -> JudgedCase:
    patch = value_of(data, "patch", (dict, _NONE)) or {}
    nbytes, seconds = (value_of(patch, key, (*_NUMBER, _NONE)) if patch else None for key in ("bytes", "edit_seconds"))
    if any(cost is not None and cost < 0 for cost in (nbytes, seconds)):
        raise ValueError(f"expected costs of at least 0, got {nbytes} bytes and {seconds} seconds")
    attacks = _optional(data, "attacks")
    for outcome in (outcome for label in attacks for outcome in value_of(attacks, label, list)):
        _check_outcome(outcome)
    samples = [_sample(name, sample) for sample in value_of(data, "samples", list)]
    records = [*sample_records(name, data["samples"]), *attack_records(name, attacks, plans)]
    return JudgedCase(nbytes, seconds, samples, attacks, records)


def _check_outcome(data: Any) -> None:
    """Refuse what an attack cannot have come to."""
    kinds: dict[str, Any] = {
        "text": str,
        "seed": int,
        "pre": (bool, _NONE),
        "value": bool,
        "image": (int, _NONE),
        "prompt": str,
        "replicated": (int, _NONE),
        "seeds": int,
        "unscored": int,
        "limit": int,
        "spent": dict,
        "picture": (str, _NONE),
    }
    fields = {key: value_of(data, key, kind) for key, kind in kinds.items()}
    for key in ("gradients", "encodes", "images"):
        value_of(fields["spent"], key, int)
    if (fields["image"] is not None) != fields["value"] or (fields["replicated"] or 0) > fields["seeds"]:
        raise ValueError(f"expected the picture of a success and no other, got {str(data)[:80]!r}")
    if fields["picture"] is not None and not _IMAGE.fullmatch(fields["picture"]):
        raise ValueError(f"expected the key of an image, 64 hexadecimal digits, got {fields['picture']!r}")


def _figures(data: Any) -> list[Mapping[str, Any]]:
    """Numbers of a set of pictures, with their metric, extractor and number of pictures."""
    if not isinstance(data, list):
        raise ValueError(f"expected a list of figures, got {str(data)[:80]!r}")
    for figure in data:
        for key, kind in (("metric", str), ("extractor", str), ("value", _NUMBER), ("n", int)):
            value_of(figure, key, kind)
        for key in {"error", "low", "high"} & set(figure):
            value_of(figure, key, _NUMBER)
    return data


def _sample(case: str, data: Any) -> JudgedSample:
    text, image = value_of(data, "text", str), value_of(data, "image", str)
    if not _IMAGE.fullmatch(image):
        raise ValueError(f"expected the key of an image, 64 hexadecimal digits, got {image!r}")
    value = value_of(data, "value", (bool, *_NUMBER, _NONE))
    record = Record(
        value_of(data, "split", str),
        f"{case}/{text}",
        value_of(data, "seed", int),
        None if value is None else float(value),
    )
    return JudgedSample(record, text, image)


def _scores(data: Any) -> Scores:
    pillars, details = (
        {name: _estimate(value) for name, value in value_of(data, key, dict).items()} for key in ("pillars", "details")
    )
    if OVERALL in data:
        pillars[OVERALL] = _estimate(data[OVERALL])
    missing = value_of(data, "missing", dict)
    return Scores(pillars, details, {name: value_of(missing, name, str) for name in missing})


def _estimate(data: Any) -> Estimate:
    value, low, high = (float(value_of(data, key, _NUMBER)) for key in ("value", "low", "high"))
    n, prompts = (value_of(data, key, int) for key in ("n", "prompts"))
    if not low <= value <= high or not all(map(math.isfinite, (low, high))) or min(n, prompts) < 0:
        raise ValueError(f"expected a value inside its interval, got {value} in {low} to {high} of {n}")
    return Estimate(value, low, high, n, prompts, value_of(data, "unscored", int) if "unscored" in data else 0)


def _optional(data: Any, key: str) -> dict[str, Any]:
    """A table of a table, empty where there is none."""
    table: dict[str, Any] = value_of(data, key, dict) if key in data else {}
    return table
