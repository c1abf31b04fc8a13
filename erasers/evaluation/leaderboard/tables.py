"""The tables of the leaderboard's page: columns that can be sorted, cells with intervals in words and drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from erasers.evaluation.leaderboard.details import CORRECTED, beside, label_of, metric_of
from erasers.evaluation.leaderboard.text import digits_text, score_text, size_text, time_text
from erasers.evaluation.leaderboard.views import Board, BoardRow, tag_of
from erasers.evaluation.page import plain
from erasers.evaluation.scores.bootstrap import Estimate
from erasers.evaluation.scores.pillars import OVERALL
from erasers.evaluation.scores.records import PROBE

COLUMNS = {
    "rank": "By overall, over all concepts. Rows with one rank (=) do not differ: paired by prompt and seed, Holm over "
    "all pairs, 5 %. Row 0, references and rows that lack a concept have none.",
    "overall": "Harmonic mean of the task's pillars; absent when one of them is.",
    "erasure": "How much less often the concept is drawn when it is asked for, by its name or a synonym.",
    "robustness": "1 - success of the worst attack.",
    "neighbours": "How often similar concepts are still drawn.",
    "specificity": "How often unrelated concepts are still drawn.",
    "utility": "How well pictures still fit their prompts and look.",
    "patch": "Size of the patch, the mean over the concepts.",
    "edit": "Time to make the patch, likewise. The machines may differ.",
}


@dataclass(frozen=True)
class Column:
    """A column that can be sorted.

    Args:
        name: Its head.
        cell: The whole cell of a row.
        first: Order of the first click.
        kind: `number` or `text`.
        tag: Stands beside the head.
    """

    name: str
    cell: Callable[[BoardRow], str]
    first: str = "ascending"
    kind: str = "number"
    tag: str = ""


def table(label: str, rows: Sequence[BoardRow], columns: Sequence[Column]) -> str:
    """A table whose roles are written out, for on narrow screens its rows are laid out as cards."""
    bodies = "".join(
        f'<tbody role="rowgroup">{"".join(_row(row, columns) for row in alike)}</tbody>\n'
        for baseline in (True, False)
        if (alike := [row for row in rows if row.baseline == baseline])
    )
    return f"""<div class="scroll" role="region" tabindex="0" aria-label="{plain(label)}">
<table class="board" role="table" aria-label="{plain(label)}">
<thead role="rowgroup"><tr role="row">{"".join(map(_head, columns))}</tr></thead>
{bodies}</table></div>
"""


def score_columns(board: Board, *, ranked: bool) -> list[Column]:
    """Rank, name, scores and costs."""
    costs = [
        Column("patch", lambda row: _cost("patch", row.nbytes, size_text)),
        Column("edit", lambda row: _cost("edit", row.seconds, time_text)),
    ]
    scores = map(share_column, board.columns)
    return [*([Column("rank", _rank)] if ranked else []), NAME, *scores, *costs]


def share_column(name: str) -> Column:
    """A score or a share, below it what it comes to when the judge's errors are taken out."""
    return Column(name, lambda row: score_cell(name, row, below=_corrected(name, row)), "descending")


def attack_column(name: str) -> Column:
    """Success of an attack or a probe, with its control, what it has over that, and whether it shows again."""
    label, tag = label_of(name), "probe" if name.startswith(PROBE) else ""
    where = f"{label} ({tag})" if tag else label
    return Column(label, lambda row: score_cell(name, row, where, below=_beside(name, row)), tag=tag)


def measure_column(name: str, top: float) -> Column:
    """The mean of a number that is no verdict; its bar ends at `top`."""
    label = label_of(name)
    return Column(label, lambda row: score_cell(name, row, label, digits=3, top=top), "descending")


def figure_column(figure: tuple[str, str]) -> Column:
    """A figure about the set of pictures, with its number of pictures."""
    return Column(figure[0], lambda row: _figure(", ".join(figure), row.figures.get(figure)), tag=figure[1])


def score_cell(name: str, row: BoardRow, label: str = "", *, digits: int = 2, top: float = 1.0, below: str = "") -> str:
    """A value with its interval, in words and drawn; or that it is missing, and why."""
    score, label = row.scores.get(name, "not measured"), f'role="cell" data-label="{plain(label or name)}"'
    if isinstance(score, str):
        return f'<td class="missing" {label} title="{plain(score)}">missing <small>{plain(score)}</small>{below}</td>'
    value, interval = score_text(score, digits)
    kind = "score overall" if name == OVERALL else "score"
    shown = f"<b>{value}</b>{_bar(score, digits, top)}<small>{interval}</small>{below}"
    return f'<td class="{kind}" {label} data-key="{score.value!r}">{shown}</td>'


def _bar(score: Estimate, digits: int, top: float) -> str:
    value, interval = score_text(score, digits)
    left, right, tick = (100 * min(1.0, max(0.0, x / top)) for x in (score.low, score.high, score.value))
    unscored = f", {score.unscored} unscored" if score.unscored else ""
    what = f"{value}, 95 % interval {interval}; {score.n} pictures of {score.prompts} prompts{unscored}"
    return (
        f'<svg role="img" viewBox="0 0 100 12" preserveAspectRatio="none"><title>{what}</title>'
        f'<rect class="track" x="0" y="5" width="100" height="2"/>'
        f'<rect class="band" x="{left:.1f}" y="2" width="{max(right - left, 0.5):.1f}" height="8"/>'
        f'<rect class="tick" x="{min(tick, 98):.1f}" y="0" width="2" height="12"/></svg>'
    )


def _corrected(name: str, row: BoardRow) -> str:
    score = row.scores.get(CORRECTED + name)
    return _extra("corrected", score) if isinstance(score, Estimate) else ""


def _beside(name: str, row: BoardRow) -> str:
    scores = [(what, row.scores.get(other)) for other, what in beside(name).items()]
    return "".join(_extra(what, score) for what, score in scores if isinstance(score, Estimate))


def _extra(what: str, score: Estimate) -> str:
    """A number that stands small below another one."""
    value, interval = score_text(score)
    return f'<small class="extra">{what} <b>{value}</b> <span>({interval})</span></small>'


def _figure(name: str, figure: Mapping[str, Any] | None) -> str:
    label = f'role="cell" data-label="{plain(name)}"'
    if figure is None:
        return f'<td class="missing" {label}>missing <small>not measured</small></td>'
    value, *facts = figure_text(figure)
    small = "".join(f'<small class="extra">{plain(fact)}</small>' for fact in facts)
    return f'<td class="score" {label} data-key="{float(figure["value"])!r}"><b>{value}</b>{small}</td>'


def figure_text(figure: Mapping[str, Any]) -> list[str]:
    """Value, interval or that there is none, and the number of pictures with the settings."""
    low, high, settings = figure.get("low"), figure.get("high"), metric_of(figure)[1]
    interval = "no interval" if low is None or high is None else f"{digits_text(low)} to {digits_text(high)}"
    return [digits_text(figure["value"]), interval, f"n {figure['n']}" + (f", {settings}" if settings else "")]


def _head(column: Column) -> str:
    why = f' title="{plain(COLUMNS[column.name])}"' if column.name in COLUMNS else ""
    tag = f' <span class="tag">{plain(column.tag)}</span>' if column.tag else ""
    return (
        f'<th scope="col" role="columnheader" aria-sort="none" data-kind="{column.kind}" data-first="{column.first}"'
        f'{why}><button type="button">{plain(column.name)}{tag}</button></th>'
    )


def _row(row: BoardRow, columns: Sequence[Column]) -> str:
    kind = ' class="baseline"' if row.baseline else ""
    return f'<tr role="row"{kind} data-row="{plain(row.name)}">{"".join(column.cell(row) for column in columns)}</tr>\n'


def _rank(row: BoardRow) -> str:
    key = f' data-key="{row.rank.lstrip("=")}"' if row.rank else ""
    return f'<td role="cell" data-label="rank"{key}>{row.rank or "–"}</td>'


def _name(row: BoardRow) -> str:
    tag = f' <span class="tag">{tag}</span>' if (tag := tag_of(row)) else ""
    tag += f"<small>only {plain(', '.join(row.only))}</small>" if row.only else ""
    name = plain(row.name)
    return f'<th class="name" scope="row" role="rowheader" data-key="{name}">{name}{tag}</th>'


NAME = Column("row", _name, kind="text")


def _cost(name: str, cost: float | None, text: Callable[[float], str]) -> str:
    if cost is None:
        return f'<td class="cost" role="cell" data-label="{name}" title="no patch, or its cost is not known">–</td>'
    return f'<td class="cost" role="cell" data-label="{name}" data-key="{cost!r}">{text(cost)}</td>'
