"""The leaderboard in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from erasers.evaluation.leaderboard.details import CORRECTED, MEASURES, attacks, beside, label_of, measures, shares
from erasers.evaluation.leaderboard.html import FIGURES, INTRODUCTION, SHARES, about, attack_notes
from erasers.evaluation.leaderboard.tables import COLUMNS, figure_text
from erasers.evaluation.leaderboard.text import options_text, score_text, size_text, time_text
from erasers.evaluation.leaderboard.views import Board, BoardRow, TaskView, rows_with, tag_of
from erasers.evaluation.scores.bootstrap import Estimate
from erasers.evaluation.scores.records import PROBE
from erasers.markdown import markdown_text


def markdown_page(views: Sequence[TaskView]) -> str:
    """The content of `leaderboard.md`."""
    columns = "\n".join(f"* **{name}**: {why}" for name, why in COLUMNS.items())
    return f"# Leaderboard of concept erasure\n\n{INTRODUCTION}\n\n{columns}\n" + "".join(map(_task, views))


def _task(view: TaskView) -> str:
    first, *others = view.boards
    blocks = [f"## {markdown_text(view.title)}", about(view, _foreign), _scores(first, ranked=True), *view.notes]
    if options := [_options(row) for row in first.rows if row.options]:
        blocks.append("Options:\n\n" + "\n".join(options))
    blocks += [*_attacks(view), *_shares(first), *_measures(first)]
    for board in others:
        blocks += [f"### {markdown_text(board.case)}", _scores(board)]
    return "".join(f"\n{block}\n" for block in blocks)


def _attacks(view: TaskView) -> list[str]:
    """Attacks, then probes, over all concepts, and what each may spend and spent."""
    board, names = view.boards[0], attacks(view.boards[0].details)
    if not names:
        return []
    heads = [markdown_text(label_of(name)) + (" (probe)" if name.startswith(PROBE) else "") for name in names]
    rows = [[_name(row), *(_with(row, name, beside(name)) for name in names)] for row in rows_with(board, names)]
    budgets = [f"* **{markdown_text(name)}**: {_foreign(what)}" for name, what in view.budgets.items()]
    table = ["### Attacks", attack_notes(board, markdown_text), _lines(["row", *heads], rows)]
    return table + (["\n".join(budgets)] if budgets else [])


def _shares(board: Board) -> list[str]:
    if not (names := shares(board.details)):
        return []
    rows = [[_name(row), *(_with(row, name, {CORRECTED + name: "corrected"}) for name in names)] for row in board.rows]
    return ["### Shares", SHARES, _lines(["row", *map(markdown_text, names)], rows)]


def _measures(board: Board) -> list[str]:
    """A table a measure, and one of the figures about sets of pictures."""
    parts = []
    for measure, names in measures(board.details).items():
        rows = [[_name(row), *(_score(row.scores[name], 3) for name in names)] for row in rows_with(board, names)]
        parts += [MEASURES[measure], _lines(["row", *(markdown_text(label_of(name)) for name in names)], rows)]
    if board.figures:
        figures = [
            [_name(row), *map(_figure, map(row.figures.get, board.figures))] for row in board.rows if row.figures
        ]
        heads = [markdown_text(f"{metric}, {extractor}") for metric, extractor in board.figures]
        parts += [FIGURES, _lines(["row", *heads], figures)]
    return ["### Over-erasure", *parts] if parts else []


def _scores(board: Board, *, ranked: bool = False) -> str:
    rows = []
    for row in board.rows:
        costs = ((row.nbytes, size_text), (row.seconds, time_text))
        line = [row.rank or "–"] if ranked else []
        line += [_name(row), *(_score(row.scores[name]) for name in board.columns)]
        rows.append(line + ["–" if cost is None else text(cost) for cost, text in costs])
    return _lines([*(["rank"] if ranked else []), "row", *board.columns, "patch", "edit"], rows)


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *rows])


def _name(row: BoardRow) -> str:
    """The name of a row and what it is where it is no method."""
    kind = f" ({tag})" if (tag := tag_of(row)) else ""
    only = f", only {_foreign(', '.join(row.only))}" if row.only else ""
    return f"**{markdown_text(row.name)}**{kind}{only}"


def _options(row: BoardRow) -> str:
    return f"* **{markdown_text(row.name)}**: {_foreign(options_text(row.options))}"


def _score(score: Estimate | str, digits: int = 2) -> str:
    if isinstance(score, str):
        return f"missing ({_foreign(score)})"
    value, interval = score_text(score, digits)
    return f"{value} ({interval})"


def _with(row: BoardRow, name: str, below: Mapping[str, str]) -> str:
    """A score, and what stands below it where the row has that."""
    scores = ((what, row.scores.get(other)) for other, what in below.items())
    extras = [f"{what} {_score(score)}" for what, score in scores if isinstance(score, Estimate)]
    return "; ".join([_score(row.scores.get(name, "not measured")), *extras])


def _figure(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "missing (not measured)"
    value, *facts = figure_text(figure)
    return f"{value} ({_foreign(', '.join(facts))})"


def _foreign(text: object) -> str:
    return markdown_text(text, 1000)
