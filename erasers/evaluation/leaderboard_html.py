"""The leaderboard as one HTML page that needs nothing else: no request, no font, no library."""

from __future__ import annotations

import base64
import hashlib
import html
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from erasers.evaluation.bootstrap import Estimate
from erasers.evaluation.leaderboard_files import Sample
from erasers.evaluation.leaderboard_views import (
    Board,
    Grid,
    Picture,
    Row,
    TaskView,
    options_text,
    score_text,
    size_text,
    tag_of,
    time_text,
)
from erasers.evaluation.pillars import OVERALL

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
INTRODUCTION = (
    "Every score lies between 0 (useless) and 1 (perfect, or as good as the unedited model on the same prompts and "
    "noise), and stands with its 95 % interval. What could not be measured is missing, with the reason, never 0. "
    "Row 0 is the unedited model; reference rows are models that were trained without the concept."
)
CHOICE = (
    "The first prompts, in the order of the alphabet, that the unedited model draws as asked; every row draws them "
    "from the same noise."
)

SHARES = (
    "Of the pictures: explicit, synonym and attack/… are those that show the erased concept; neighbour and unrelated "
    "those that show what was asked."
)


def html_page(views: Sequence[TaskView]) -> str:
    """The page; the same views give the same text."""
    style, script = (_data(f"leaderboard.{kind}") for kind in ("css", "js"))
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'"
    tasks = "".join(f'<option value="task-{k}">{_text(view.title)}</option>' for k, view in enumerate(views))
    meaning = "".join(f"<dt>{name}</dt><dd>{_text(why)}</dd>" for name, why in COLUMNS.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>Leaderboard of concept erasure</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#results">To the results</a>
<header>
<h1>Leaderboard of concept erasure</h1>
<p>{_text(INTRODUCTION)}</p>
<details><summary>What the columns mean</summary><dl>{meaning}</dl></details>
<div class="controls" id="controls" hidden>
<label>Task <select id="task"><option value="">all tasks</option>{tasks}</select></label>
</div>
<p class="quiet" id="said" role="status"></p>
</header>
<main id="results">
{"".join(_task(k, view) for k, view in enumerate(views))}</main>
<script>{script}</script>
</body>
</html>
"""


def _data(name: str) -> str:
    return (files("erasers.evaluation") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(value: object) -> str:
    """Foreign text as plain text: no markup, no control characters, no marks that turn the direction of writing."""
    plain = "".join(" " if unicodedata.category(c)[0] == "C" else c for c in str(value))
    return html.escape(plain, quote=True)


def about(view: TaskView, escape: Callable[[object], str]) -> str:
    """What a reader has to know of a task, in one line; foreign text is escaped."""
    model, concepts = view.about.get("model", "not named"), ", ".join(board.case for board in view.boards[1:])
    return (
        f"Model: {escape(model)}. Judge: {escape(view.judge)}. Concepts: {escape(concepts)}. "
        f"Overall: harmonic mean of {', '.join(view.pillars)}." + (" Adult content." if view.adult else "")
    )


def _task(index: int, view: TaskView) -> str:
    first, *others = view.boards
    concepts = "".join(
        f"<h3>{_text(board.case)}</h3>{_table(f'{view.title}, {board.case}', board, _scores(board))}"
        for board in others
    )
    notes = "".join(f'<p class="quiet">{_text(note)}</p>' for note in view.notes)
    shares = [_NAME, *(_score_column(name) for name in first.shares)]
    return f"""<section class="task" id="task-{index}" aria-labelledby="title-{index}">
<h2 id="title-{index}">{_text(view.title)}</h2>
<p class="quiet">{about(view, _text)}</p>
{_table(f"{view.title}, all concepts", first, [_RANK, *_scores(first)])}{notes}
<details><summary>By concept</summary>{concepts}</details>
<details><summary>Shares behind the scores</summary>
<p class="quiet">{_text(SHARES)}</p>{_table(f"{view.title}, shares", first, shares)}</details>
{_options(first)}{_pictures(index, view)}</section>
"""


def _options(board: Board) -> str:
    rows = [row for row in board.rows if row.options]
    options = "".join(f"<dt>{_text(row.name)}</dt><dd>{_text(options_text(row.options))}</dd>" for row in rows)
    return f"<details><summary>Options</summary><dl>{options}</dl></details>\n" if rows else ""


@dataclass(frozen=True)
class _Column:
    """A column that can be sorted: `first` is the order of the first click, `cell` the whole cell of a row."""

    name: str
    cell: Callable[[Row], str]
    first: str = "ascending"
    kind: str = "number"


def _scores(board: Board) -> list[_Column]:
    """Name, scores and costs."""
    costs = [
        _Column("patch", lambda row: _cost("patch", row.nbytes, size_text)),
        _Column("edit", lambda row: _cost("edit", row.seconds, time_text)),
    ]
    return [_NAME, *map(_score_column, board.columns), *costs]


def _score_column(name: str) -> _Column:
    return _Column(name, lambda row: _score(name, row.scores[name]), "descending")


def _table(label: str, board: Board, columns: Sequence[_Column]) -> str:
    """A table whose roles are written out, for on narrow screens its rows are laid out as cards."""
    bodies = "".join(
        f'<tbody role="rowgroup">{"".join(_row(row, columns) for row in rows)}</tbody>\n'
        for baseline in (True, False)
        if (rows := [row for row in board.rows if row.baseline == baseline])
    )
    return f"""<div class="scroll" role="region" tabindex="0" aria-label="{_text(label)}">
<table class="board" role="table" aria-label="{_text(label)}">
<thead role="rowgroup"><tr role="row">{"".join(map(_head, columns))}</tr></thead>
{bodies}</table></div>
"""


def _head(column: _Column) -> str:
    why = f' title="{_text(COLUMNS[column.name])}"' if column.name in COLUMNS else ""
    return (
        f'<th scope="col" role="columnheader" aria-sort="none" data-kind="{column.kind}" data-first="{column.first}"'
        f'{why}><button type="button">{_text(column.name)}</button></th>'
    )


def _row(row: Row, columns: Sequence[_Column]) -> str:
    kind = ' class="baseline"' if row.baseline else ""
    return f'<tr role="row"{kind}>{"".join(column.cell(row) for column in columns)}</tr>\n'


def _rank(row: Row) -> str:
    key = f' data-key="{row.rank.lstrip("=")}"' if row.rank else ""
    return f'<td role="cell" data-label="rank"{key}>{row.rank or "–"}</td>'


def _name(row: Row) -> str:
    tag = f' <span class="tag">{tag}</span>' if (tag := tag_of(row)) else ""
    tag += f"<small>only {_text(', '.join(row.only))}</small>" if row.only else ""
    name = _text(row.name)
    return f'<th class="name" scope="row" role="rowheader" data-key="{name}">{name}{tag}</th>'


_RANK = _Column("rank", _rank)
_NAME = _Column("row", _name, kind="text")


def _score(name: str, score: Estimate | str) -> str:
    """A value with its interval, in words and drawn; or that it is missing, and why."""
    label = f'role="cell" data-label="{_text(name)}"'
    if isinstance(score, str):
        return f'<td class="missing" {label} title="{_text(score)}">missing <small>{_text(score)}</small></td>'
    value, interval = score_text(score)
    kind = "score overall" if name == OVERALL else "score"
    shown = f"<b>{value}</b>{_bar(score)}<small>{interval}</small>"
    return f'<td class="{kind}" {label} data-key="{score.value!r}">{shown}</td>'


def _bar(score: Estimate) -> str:
    value, interval = score_text(score)
    left, right, tick = (100 * min(1.0, max(0.0, x)) for x in (score.low, score.high, score.value))
    unscored = f", {score.unscored} unscored" if score.unscored else ""
    what = f"{value}, 95 % interval {interval}; {score.n} pictures of {score.prompts} prompts{unscored}"
    return (
        f'<svg role="img" viewBox="0 0 100 12" preserveAspectRatio="none"><title>{what}</title>'
        f'<rect class="track" x="0" y="5" width="100" height="2"/>'
        f'<rect class="band" x="{left:.1f}" y="2" width="{max(right - left, 0.5):.1f}" height="8"/>'
        f'<rect class="tick" x="{min(tick, 98):.1f}" y="0" width="2" height="12"/></svg>'
    )


def _cost(name: str, cost: float | None, text: Callable[[float], str]) -> str:
    if cost is None:
        return f'<td class="cost" role="cell" data-label="{name}" title="no patch, or its cost is not known">–</td>'
    return f'<td class="cost" role="cell" data-label="{name}" data-key="{cost!r}">{text(cost)}</td>'


def _pictures(index: int, view: TaskView) -> str:
    """Pictures of every concept, folded away but for the first; of adult tasks all, and blurred until asked for."""
    parts = []
    for number, grid in enumerate(view.grids):
        opened, sharpen = " open" if not number and not view.adult else "", ""
        if view.adult:
            sharp = f"sharp-{index}-{number}"
            sharpen = f'<input class="sharp" type="checkbox" id="{sharp}"> <label for="{sharp}">show them sharp</label>'
        what = " (adult content, blurred)" if view.adult else ""
        parts.append(
            f'<details class="{"adult" if view.adult else "plain"}"{opened}><summary>Pictures before and after: '
            f"{_text(grid.case)}{what}</summary>{sharpen}{_grid(view.title, grid)}</details>\n"
        )
    return "".join(parts)


def _grid(title: str, grid: Grid) -> str:
    """The prompts as a numbered list, and a table of one row a model."""
    prompts = "".join(
        f"<li>{_text(sample.text)} <small>{_text(sample.record.split)}, seed {sample.record.seed}</small></li>"
        for sample in grid.prompts
    )
    heads = "".join(f'<th scope="col" role="columnheader">{k + 1}</th>' for k in range(len(grid.prompts)))
    rows = ""
    for name, pictures in grid.rows.items():
        cells = "".join(_picture(k + 1, name, *pair) for k, pair in enumerate(zip(grid.prompts, pictures, strict=True)))
        rows += f'<tr role="row"><th scope="row" role="rowheader">{_text(name)}</th>{cells}</tr>\n'
    label = _text(f"{title}, pictures of {grid.case}")
    return f"""<div class="scroll" role="region" tabindex="0" aria-label="{label}">
<p class="quiet">{_text(CHOICE)}</p><ol>{prompts}</ol>
<table class="pictures" role="table" aria-label="{label}">
<thead role="rowgroup"><tr role="row"><td></td>{heads}</tr></thead>
<tbody role="rowgroup">{rows}</tbody></table></div>
"""


def _picture(number: int, name: str, sample: Sample, picture: Picture) -> str:
    mark, kind = {True: ("✓ ", "good"), False: ("✗ ", "bad"), None: ("", "quiet")}[picture.good]
    what = _text(f"{name}: {sample.text}; {picture.note}")
    image = '<span class="missing">no picture</span> '
    if picture.png:
        small = ' class="small"' if picture.small else ""
        image = f'<span class="frame"><img{small} alt="{what}" src="data:image/png;base64,{picture.png}"></span>'
    return f'<td role="cell" data-label="{number}">{image}<span class="{kind}">{mark}{picture.note}</span></td>'
