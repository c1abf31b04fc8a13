"""What a leaderboard shows, before it is written as Markdown or HTML: tables of rows with ranks, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from erasers.evaluation.leaderboard.details import budgets, detectable, figure_names, metric_of
from erasers.evaluation.leaderboard.pictures import Find, Grid, finds, grids
from erasers.evaluation.scores.bootstrap import Estimate
from erasers.evaluation.scores.pillars import OVERALL, PILLARS, Rise, compare
from erasers.evaluation.scores.records import UNEDITED
from erasers.evaluation.scores.results import ALL, REFERENCE, Result, redrawn, setting_text
from erasers.evaluation.scores.statistics import tied_ranks


@dataclass(frozen=True)
class BoardRow:
    """One row of a table.

    Args:
        name: Of the row.
        kind: `unedited`, `reference`, `method` or `patch`.
        options: Hyper-parameters.
        rank: `1`, or `=1` where rows are tied; empty for what has none: row 0, references, rows without an overall
            score or with a part of the cases.
        scores: Column or detail -> estimate or, where there is none, why.
        figures: (metric, extractor) -> figure, as result files have it.
        nbytes: Of the patch, the mean over the cases; None where there is no patch or its size is not known.
        seconds: To make it, likewise.
        only: The cases that it has, in the board of all, where the task has more.
        redrawn: Pictures that were drawn again and held.
    """

    name: str
    kind: str
    options: Mapping[str, Any]
    rank: str
    scores: Mapping[str, Estimate | str]
    nbytes: float | None
    seconds: float | None
    only: Sequence[str] = ()
    figures: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    redrawn: int = 0

    @property
    def baseline(self) -> bool:
        """Whether it is there to be compared with, and has no rank."""
        return self.kind in (UNEDITED, REFERENCE)


@dataclass(frozen=True)
class Board:
    """The rows of one case, or of all; in the order of the ranks, row 0 and the references first.

    Args:
        case: Of which they are.
        columns: Overall and pillars.
        details: Every detail that a row has, sorted.
        figures: Every (metric, extractor) that a row has a figure of.
        rows: The rows; all have all columns and details.
    """

    case: str
    columns: Sequence[str]
    details: Sequence[str]
    figures: Sequence[tuple[str, str]]
    rows: Sequence[BoardRow]


@dataclass(frozen=True)
class TaskView:
    """All of one task.

    Args:
        title: Name and version.
        about: The task.
        judge: Name of its judge.
        pillars: What `overall` is the mean of.
        adult: Pictures are of adult content.
        boards: That of all cases, then one a case.
        grids: The same prompts drawn by every row.
        budgets: Attack -> what it may spend and spent, in words.
        finds: Attack -> successes with their pictures.
        notes: What else has to be said.
    """

    title: str
    about: Mapping[str, Any]
    judge: str
    pillars: Sequence[str]
    adult: bool
    boards: Sequence[Board]
    grids: Sequence[Grid]
    budgets: Mapping[str, str]
    finds: Mapping[str, Sequence[Find]]
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
    made = grids(shown) if shown else []
    if not made:
        notes.append(f"No pictures: {'those of adult tasks are left out' if hidden else 'none are in the store'}.")
    notes += [note] if (note := detectable(results)) else []
    notes.append(_setting_note(results))
    return TaskView(
        title=title,
        about=results[0].task,
        judge=results[0].shared["judge"]["name"],
        pillars=results[0].scheme.pillars,
        adult=results[0].adult,
        boards=boards,
        grids=made,
        budgets=budgets(results),
        finds=finds(shown),
        notes=notes,
    )


def _setting_note(results: Sequence[Result]) -> str:
    """How the pictures were drawn, as far as the rows record it."""
    names: dict[str, list[str]] = {}
    for result in results:
        names.setdefault(setting_text(result), []).append(result.name)
    settings = [said + (f" ({', '.join(rows)})" if len(names) > 1 else "") for said, rows in names.items()]
    return f"Scheduler, dtype and versions: {'; '.join(settings)}."


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
            kids = Rise.among(first.figures.get(ALL, ())), Rise.among(second.figures.get(ALL, ()))
            differences = compare(records[first.name], records[second.name], unedited, first.scheme, kids=kids)
        except ValueError as error:
            raise ValueError(f"cannot compare {first.path} with {second.path}: {error}") from error
        if OVERALL not in differences:
            return {}
        p_values[first.name, second.name] = differences[OVERALL].p
    return tied_ranks({row.name: row.scores[ALL].pillars[OVERALL].value for row in rows}, p_values)


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
    details = sorted({name for result in results for name in result.scores[case].details})
    scheme = results[0].scheme.pillars
    columns = [OVERALL, *(name for name in PILLARS if name in scheme or any(name in scored for scored in pillars))]
    rows = [_row(result, case, every, (*columns, *details), order) for result in results]
    figures = figure_names(results) if case == ALL else []
    return Board(case, columns, details, figures, sorted(rows, key=_place))


def _place(row: BoardRow) -> float:
    """Baselines in the order they have, then by score, which ranks follow, then rows without one or of some cases."""
    overall = row.scores[OVERALL]
    return -2.0 if row.baseline else -overall.value if isinstance(overall, Estimate) and not row.only else 1.0


def _row(result: Result, case: str, every: set[str], columns: Sequence[str], order: Mapping[str, int]) -> BoardRow:
    scores, cases = result.scores[case], [result.cases[case]] if case != ALL else list(result.cases.values())
    tied = [name for name in order if order[name] == order.get(result.name)]
    estimates: dict[str, Estimate | str] = {**scores.details, **scores.pillars}
    missing = {OVERALL: f"needs {', '.join(scores.missing)}" if scores.missing else "", **scores.missing}
    return BoardRow(
        name=result.name,
        kind=result.kind,
        options=result.options,
        rank=f"{'=' if len(tied) > 1 else ''}{order[result.name]}" if tied and case == ALL else "",
        scores={name: estimates.get(name) or missing.get(name) or "not measured" for name in columns},
        nbytes=_mean([each.nbytes for each in cases]),
        seconds=_mean([each.seconds for each in cases]),
        only=list(result.cases) if case == ALL and every - set(result.cases) else (),
        figures={(metric_of(figure)[0], figure["extractor"]): figure for figure in result.figures.get(case, ())},
        redrawn=redrawn(result),
    )


def _mean(costs: Sequence[float | None]) -> float | None:
    """Over the cases that have one."""
    known = [cost for cost in costs if cost is not None]
    return sum(known) / len(known) if known else None


def tag_of(row: BoardRow) -> str:
    """What a row is where it is no method and its name does not say so, and whether it was drawn again."""
    tag = {UNEDITED: "row 0", "method": ""}.get(row.kind, row.kind)
    again = f"{row.redrawn} redrawn" if row.redrawn else ""
    return ", ".join(filter(None, ("" if tag == row.name else tag, again)))


def rows_with(board: Board, details: Sequence[str]) -> list[BoardRow]:
    """Rows of a table of some details: baselines that have none of them are left out."""
    return [row for row in board.rows if not row.baseline or any(_known(row, name) for name in details)]


def _known(row: BoardRow, name: str) -> bool:
    return isinstance(row.scores[name], Estimate)
