"""What a leaderboard shows, before it is written as Markdown or HTML: tables of rows with ranks, and pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import Any

from PIL import Image

from erasers.evaluation.bootstrap import Estimate
from erasers.evaluation.leaderboard_files import ALL, REFERENCE, Result, Sample
from erasers.evaluation.pillars import OVERALL, PILLARS, compare
from erasers.evaluation.profile import ERASED_SPLITS, SPLITS
from erasers.evaluation.records import UNEDITED
from erasers.evaluation.statistics import tied_ranks

LARGEST = 256
_SHOWN = {"explicit": 2, "synonym": 1, "neighbour": 1, "unrelated": 1}


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Args:
        name: Of the row.
        kind: `unedited`, `reference`, `method` or `patch`.
        options: Hyper-parameters.
        rank: `1`, or `=1` where rows are tied; empty for what has none: row 0, references, rows without an overall
            score or with a part of the cases.
        scores: Column -> estimate or, where there is none, why.
        nbytes: Of the patch, the mean over the cases; None where there is no patch or its size is not known.
        seconds: To make it, likewise.
        only: The cases that it has, in the board of all, where the task has more.
    """

    name: str
    kind: str
    options: Mapping[str, Any]
    rank: str
    scores: Mapping[str, Estimate | str]
    nbytes: float | None
    seconds: float | None
    only: Sequence[str] = ()

    @property
    def baseline(self) -> bool:
        """Whether it is there to be compared with, and has no rank."""
        return self.kind in (UNEDITED, REFERENCE)


@dataclass(frozen=True)
class Board:
    """The rows of one case, or of all; in the order of the ranks, row 0 and the references first."""

    case: str
    columns: Sequence[str]
    shares: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Picture:
    """One picture: the verdict, whether it is welcome (None: neither), and its PNG, empty where there is none."""

    note: str
    good: bool | None
    png: str
    small: bool = False


@dataclass(frozen=True)
class Grid:
    """The same prompts with the same noise, drawn by every row of a case: row name -> one picture a prompt."""

    case: str
    prompts: Sequence[Sample]
    rows: Mapping[str, Sequence[Picture]]


@dataclass(frozen=True)
class TaskView:
    """All of one task: `pillars` are those that `overall` is the mean of, the first board is that of all cases."""

    title: str
    about: Mapping[str, Any]
    judge: str
    pillars: Sequence[str]
    adult: bool
    boards: Sequence[Board]
    grids: Sequence[Grid]
    notes: Sequence[str]


def task_view(title: str, results: Sequence[Result], *, allow_adult: bool = False) -> TaskView:
    """Tables, ranks and pictures of the rows of one task, in the order of `read_tasks`."""
    order, notes = ranks(results), []
    if not order and _rankable(results):
        notes.append("No ranks: the files do not hold what overall scores are compared by.")
    boards = [_board(case, results, order) for case in (ALL, *results[0].cases)]
    hidden = results[0].adult and not allow_adult
    places = {row.name: place for place, row in enumerate(boards[0].rows)}
    shown = [] if hidden else sorted(results, key=lambda result: places[result.name])
    grids = [_grid(case, [row for row in shown if case in row.cases]) for case in results[0].cases if shown]
    grids = [grid for grid in grids if any(picture.png for row in grid.rows.values() for picture in row)]
    if not grids:
        notes.append(f"No pictures: {'those of adult tasks are left out' if hidden else 'none are in the store'}.")
    return TaskView(
        title=title,
        about=results[0].task,
        judge=results[0].shared["judge"]["name"],
        pillars=results[0].scheme.pillars,
        adult=results[0].adult,
        boards=boards,
        grids=grids,
        notes=notes,
    )


def ranks(results: Sequence[Result]) -> dict[str, int]:
    """Row -> rank by `overall` over all cases, tied where rows do not differ; empty where they cannot be compared.

    Baselines have none, nor rows that lack a case: theirs may have been the hard one.

    Raises:
        ValueError: Two rows with other prompts or seeds.
    """
    unedited, rows, p_values = results[0].records(), _rankable(results), {}
    records = {row.name: row.records() for row in rows}
    for first, second in combinations(rows, 2):
        try:
            differences = compare(records[first.name], records[second.name], unedited, first.scheme)
        except ValueError as error:
            raise ValueError(f"cannot compare {first.path} with {second.path}: {error}") from error
        if OVERALL not in differences:
            return {}
        p_values[first.name, second.name] = differences[OVERALL].p
    return tied_ranks({row.name: row.scores[ALL].pillars[OVERALL].value for row in rows}, p_values)


def shown_samples(results: Sequence[Result]) -> list[Sample]:
    """Every row's samples of the prompts whose pictures are shown."""
    keys = {case: [_key(sample) for sample in _chosen(results[0], case)] for case in results[0].cases}
    return [
        sample
        for result in results
        for name, case in result.cases.items()
        for sample in case.samples
        if _key(sample) in keys[name]
    ]


def _rankable(results: Sequence[Result]) -> list[Result]:
    return [
        result
        for result in results
        if result.kind not in (UNEDITED, REFERENCE)
        and OVERALL in result.scores[ALL].pillars
        and len(result.cases) == len(results[0].cases)
    ]


def _board(case: str, results: Sequence[Result], order: Mapping[str, int]) -> Board:
    every, results = set(results[0].cases), [result for result in results if case in result.scores]
    pillars = [result.scores[case].pillars for result in results]
    details = {name for result in results for name in result.scores[case].details}
    scheme = results[0].scheme.pillars
    columns = [OVERALL, *(name for name in PILLARS if name in scheme or any(name in found for found in pillars))]
    shares = [name for name in (*SPLITS, *sorted(details - set(SPLITS))) if name in details]
    shares = [name for name in shares if not name.startswith(f"{UNEDITED}/")]
    rows = [_row(result, case, every, (*columns, *shares), order) for result in results]
    return Board(case, columns, shares, sorted(rows, key=_place))


def _place(row: Row) -> float:
    """Baselines in the order they have, then by score, which ranks follow, then rows without one or of some cases."""
    overall = row.scores[OVERALL]
    return -2.0 if row.baseline else -overall.value if isinstance(overall, Estimate) and not row.only else 1.0


def _row(result: Result, case: str, every: set[str], columns: Sequence[str], order: Mapping[str, int]) -> Row:
    scores, cases = result.scores[case], [result.cases[case]] if case != ALL else list(result.cases.values())
    tied = [name for name in order if order[name] == order.get(result.name)]
    found: dict[str, Estimate | str] = {**scores.details, **scores.pillars}
    missing = {OVERALL: f"needs {', '.join(scores.missing)}" if scores.missing else "", **scores.missing}
    return Row(
        name=result.name,
        kind=result.kind,
        options=result.options,
        rank=f"{'=' if len(tied) > 1 else ''}{order[result.name]}" if tied and case == ALL else "",
        scores={name: found.get(name) or missing.get(name) or "not measured" for name in columns},
        nbytes=_mean([some.nbytes for some in cases]),
        seconds=_mean([some.seconds for some in cases]),
        only=list(result.cases) if case == ALL and every - set(result.cases) else (),
    )


def _mean(costs: Sequence[float | None]) -> float | None:
    """Over the cases that have one."""
    known = [cost for cost in costs if cost is not None]
    return sum(known) / len(known) if known else None


def _chosen(unedited: Result, case: str) -> list[Sample]:
    """Samples of the unedited row: the first prompts of each split, in the order of the alphabet, drawn as asked.

    The choice does not depend on which pictures are there, nor on any edited model.
    """
    chosen = []
    for split, count in _SHOWN.items():
        texts: dict[str, Sample] = {}
        for sample in sorted(unedited.cases[case].samples, key=lambda s: (s.record.value != 1, s.text, s.record.seed)):
            if sample.record.split == split:
                texts.setdefault(sample.text, sample)
        chosen += list(texts.values())[:count]
    return chosen


def _grid(case: str, results: Sequence[Result]) -> Grid:
    prompts = _chosen(results[0], case)
    keys = [_key(sample) for sample in prompts]
    rows = {}
    for result in results:
        found = {_key(sample): sample for sample in result.cases[case].samples}
        rows[result.name] = [_picture(result, found.get(key)) for key in keys]
    return Grid(case, prompts, rows)


def _key(sample: Sample) -> tuple[str, str, int]:
    return sample.record.split, sample.text, sample.record.seed


def _picture(result: Result, sample: Sample | None) -> Picture:
    if sample is None:
        return Picture("not drawn", None, "")
    png, small = _png(result.path.parent.parent / "images" / sample.image[:2] / f"{sample.image}.png")
    return Picture(*_verdict(sample, result.kind == UNEDITED), png, small)


def _verdict(sample: Sample, before: bool) -> tuple[str, bool | None]:
    """What the judge said, in words, and whether that is welcome; of the unedited model nothing is."""
    value = sample.record.value
    if value is None:
        return "not scored", None
    if before:
        return "as asked" if value else "not as asked", None
    if sample.record.split in ERASED_SPLITS:
        return ("stays", False) if value else ("gone", True)
    return ("kept", True) if value else ("lost", False)


def _png(path: Path) -> tuple[str, bool]:
    """A picture as base64, shrunk where it is large, and whether it is to be magnified; empty where it is not there.

    Raises:
        ValueError: A damaged picture.
    """
    if not path.is_file():
        return "", False
    content = path.read_bytes()
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            size = image.size
            image.load()
            if max(size) > LARGEST:
                image.thumbnail((LARGEST, LARGEST))
                part = BytesIO()
                image.convert("RGB").save(part, format="PNG")
                content = part.getvalue()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a picture, or it is damaged: {error}") from error
    return base64.b64encode(content).decode(), max(size) <= LARGEST // 2


def tag_of(row: Row) -> str:
    """What a row is where it is no method and its name does not say so."""
    tag = {UNEDITED: "row 0", "method": ""}.get(row.kind, row.kind)
    return "" if tag == row.name else tag


def score_text(estimate: Estimate) -> tuple[str, str]:
    """A value and its interval to two decimals."""
    return f"{estimate.value:.2f}", f"{estimate.low:.2f} to {estimate.high:.2f}"


def size_text(nbytes: float) -> str:
    """A number of bytes in a readable unit."""
    if nbytes < 1000:
        return f"{nbytes:.0f} B"
    unit, factor = next(((u, f) for u, f in (("kB", 1e3), ("MB", 1e6)) if nbytes < 999.5 * f), ("GB", 1e9))
    return f"{nbytes / factor:.3g} {unit}"


def time_text(seconds: float) -> str:
    """A time in a readable unit."""
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.3g} h"


def options_text(options: Mapping[str, Any]) -> str:
    """Hyper-parameters as `name=value`, in order."""
    return ", ".join(f"{name}={options[name]}" for name in sorted(options))
