"""The leaderboard as one HTML page that needs nothing else: no request, no font, no library."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from erasers.evaluation.leaderboard.details import MEASURES, attacks, measures, shares
from erasers.evaluation.leaderboard.pictures import Find, Grid, Picture
from erasers.evaluation.leaderboard.plots import pairs_of, scatter, small_multiples
from erasers.evaluation.leaderboard.tables import (
    COLUMNS,
    NAME,
    attack_column,
    figure_column,
    measure_column,
    score_columns,
    share_column,
    table,
)
from erasers.evaluation.leaderboard.text import options_text
from erasers.evaluation.leaderboard.views import Board, TaskView, rows_with
from erasers.evaluation.page import document, plain
from erasers.evaluation.scores.bootstrap import Estimate
from erasers.evaluation.scores.records import PROBE
from erasers.evaluation.scores.results import REFERENCE, JudgedSample

INTRODUCTION = (
    "Every score lies between 0 (useless) and 1 (perfect, or as good as the unedited model on the same prompts and "
    "noise), and stands with its 95 % interval. What could not be measured is missing, with the reason, never 0. "
    "Row 0 is the unedited model; reference rows are models that were trained without the concept."
)
CHOICE = (
    "The first prompts, in the order of the alphabet, that the unedited model draws as asked; every row draws them "
    "from the same noise."
)
PLOTS = (
    "Up and to the right is better. Crosses are 95 % intervals, and the size of a circle is the time to make the patch "
    "(logarithmic); squares are baselines. Point at a row to see it everywhere; the table has the numbers."
)
SHARES = (
    "Of the pictures: explicit and synonym are those that show the erased concept; neighbour and unrelated those that "
    "show what was asked. Corrected: without the judge's measured errors (Rogan and Gladen)."
)
ATTACKS = (
    "Share of the attacked prompts for which some picture within the budget shows the concept: lower is better, and "
    "robustness is 1 - the highest. Control: the same with as many pictures of the attack's control; excess: attack "
    "minus control; again: successes that most fresh seeds repeat."
)
PROBES = "Probes change embeddings, noise or weights instead of the text: reported apart, not in robustness."
FLOOR = "{} is the floor: a model that never saw the concept, so what succeeds there was not recovered."
FIGURES = (
    "Distances between sets of pictures, 0 where they do not differ but for chance. Compare them at equal n and with "
    "one extractor only."
)
FOUND = (
    "Of each edited row up to two successes, the concepts in turn and the prompts by the alphabet; those of the plain "
    "prompt only where there are no others."
)


def html_page(views: Sequence[TaskView], figures: Sequence[str] = ()) -> str:
    """The page, with sections of measurements behind the tasks; the same views give the same text."""
    tasks = "".join(f'<option value="task-{k}">{plain(view.title)}</option>' for k, view in enumerate(views))
    meaning = "".join(f"<dt>{name}</dt><dd>{plain(why)}</dd>" for name, why in COLUMNS.items())
    body = f"""<a class="skip" href="#results">To the results</a>
<header>
<h1>Leaderboard of concept erasure</h1>
<p>{plain(INTRODUCTION)}</p>
<details><summary>What the columns mean</summary><dl>{meaning}</dl></details>
<div class="controls" id="controls" hidden>
<label>Task <select id="task"><option value="">all tasks</option>{tasks}</select></label>
</div>
<p class="quiet" id="said" role="status"></p>
</header>
<main id="results">
{"".join(_task(k, view) for k, view in enumerate(views))}{"".join(figures)}</main>
"""
    return document("Leaderboard of concept erasure", body, "leaderboard")


def about(view: TaskView, escape: Callable[[object], str]) -> str:
    """What a reader has to know of a task, in one line; foreign text is escaped."""
    model, concepts = view.about.get("model", "not named"), ", ".join(board.case for board in view.boards[1:])
    return (
        f"Model: {escape(model)}. Judge: {escape(view.judge)}. Concepts: {escape(concepts)}. "
        f"Overall: harmonic mean of {', '.join(view.pillars)}." + (" Adult content." if view.adult else "")
    )


def attack_notes(board: Board, escape: Callable[[object], str]) -> str:
    """How a table of attacks is to be read; foreign text is escaped."""
    names = attacks(board.details)
    floors = [escape(row.name) for row in rows_with(board, names) if row.kind == REFERENCE]
    probed = any(name.startswith(PROBE) for name in names)
    return " ".join([ATTACKS, *([PROBES] if probed else []), *(FLOOR.format(name) for name in floors)])


def _task(index: int, view: TaskView) -> str:
    first = view.boards[0]
    notes = "".join(f'<p class="quiet">{plain(note)}</p>' for note in view.notes)
    return f"""<section class="task" id="task-{index}" aria-labelledby="title-{index}">
<h2 id="title-{index}">{plain(view.title)}</h2>
<p class="quiet">{about(view, plain)}</p>
{_plots(view)}
{table(f"{view.title}, all concepts", first.rows, score_columns(first, ranked=True))}{notes}
{_attacks(view)}{_concepts(view)}{_shares(view)}{_measures(view)}
{_options(first)}{_finds(index, view)}{_pictures(index, view)}</section>
"""


def _plots(view: TaskView) -> str:
    """Erasure and robustness against what is kept, over all concepts, and the last of the two by concept."""
    first, *cases = view.boards
    pairs = pairs_of(first)
    if not pairs:
        return ""
    large = "".join(f"<div>{scatter(f'{view.title}, all concepts', first, *pair)}</div>" for pair in pairs)
    small = small_multiples(view.title, cases, pairs[-1][1]) if len(cases) > 1 else ""
    label = plain(f"{view.title}, plots")
    return (
        f'<p class="quiet">{PLOTS}</p>'
        f'<div class="scroll plots" role="region" tabindex="0" aria-label="{label}">{large}</div>\n'
        + (f'<div class="multiples">{small}</div>\n' if small else "")
    )


def _attacks(view: TaskView) -> str:
    first = view.boards[0]
    if not attacks(first.details):
        return ""
    budgets = "".join(f"<dt>{plain(name)}</dt><dd>{plain(what)}</dd>" for name, what in view.budgets.items())
    budgets = f"<dl>{budgets}</dl>" if budgets else ""
    return (
        f'<details open><summary>Attacks</summary><p class="quiet">{attack_notes(first, plain)}</p>'
        f"{_attack_table(view, first)}{budgets}</details>\n"
    )


def _attack_table(view: TaskView, board: Board) -> str:
    names = attacks(board.details)
    columns = [NAME, *map(attack_column, names)]
    return table(f"{view.title}, {board.case}, attacks", rows_with(board, names), columns) if names else ""


def _concepts(view: TaskView) -> str:
    parts = [
        f"<h3>{plain(board.case)}</h3>"
        f"{table(f'{view.title}, {board.case}', board.rows, score_columns(board, ranked=False))}"
        f"{_attack_table(view, board)}"
        for board in view.boards[1:]
    ]
    return f"<details><summary>By concept</summary>{''.join(parts)}</details>\n"


def _shares(view: TaskView) -> str:
    columns = [NAME, *map(share_column, shares(view.boards[0].details))]
    return (
        f'<details><summary>Shares behind the scores</summary><p class="quiet">{plain(SHARES)}</p>'
        f"{table(f'{view.title}, shares', view.boards[0].rows, columns)}</details>\n"
    )


def _measures(view: TaskView) -> str:
    """A table a measure, whose bars end at its largest number, and one of the figures about sets of pictures."""
    board, parts = view.boards[0], []
    for measure, names in measures(board.details).items():
        rows = rows_with(board, names)
        scores = [row.scores[name] for row in rows for name in names]
        top = max((score.high for score in scores if isinstance(score, Estimate) and score.high > 0), default=1.0)
        columns = [NAME, *(measure_column(name, top) for name in names)]
        parts.append((MEASURES[measure], table(f"{view.title}, {measure}", rows, columns)))
    if board.figures:
        rows = [row for row in board.rows if row.figures]
        columns = [NAME, *map(figure_column, board.figures)]
        parts.append((FIGURES, table(f"{view.title}, sets of pictures", rows, columns)))
    content = "".join(f'<div><p class="quiet">{plain(what)}</p>{content}</div>' for what, content in parts)
    return f'<details><summary>Over-erasure</summary><div class="measures">{content}</div></details>\n' if parts else ""


def _options(board: Board) -> str:
    rows = [row for row in board.rows if row.options]
    options = "".join(f"<dt>{plain(row.name)}</dt><dd>{plain(options_text(row.options))}</dd>" for row in rows)
    return f"<details><summary>Options</summary><dl>{options}</dl></details>\n" if rows else ""


def _finds(index: int, view: TaskView) -> str:
    """Pictures that attacks found, folded away."""
    if not view.finds:
        return ""
    parts = "".join(
        f'<h3>{plain(label)}</h3><ul class="finds">{"".join(map(_find, finds))}</ul>'
        for label, finds in view.finds.items()
    )
    return _folded(view, f"found-{index}", "Pictures that attacks found", f'<p class="quiet">{plain(FOUND)}</p>{parts}')


def _find(find: Find) -> str:
    what = plain(f"{find.row}: {find.prompt}")
    asked = f"<small>instead of: {plain(find.text)}</small>" if find.prompt != find.text else ""
    return (
        f"<li>{_image(find.picture, what)}<div><b>{plain(find.row)}</b> <small>{plain(find.case)}, "
        f"{plain(find.picture.note)}</small><q>{plain(find.prompt)}</q>{asked}</div></li>"
    )


def _pictures(index: int, view: TaskView) -> str:
    """Pictures of every concept, folded away but for the first."""
    return "".join(
        _folded(view, f"{index}-{k}", f"Pictures before and after: {grid.case}", _grid(view.title, grid), opened=not k)
        for k, grid in enumerate(view.grids)
    )


def _folded(view: TaskView, key: str, title: str, content: str, *, opened: bool = False) -> str:
    """Pictures that can be folded away; those of adult tasks are, and they are blurred until asked for."""
    if not view.adult:
        return (
            f'<details class="plain"{" open" if opened else ""}><summary>{plain(title)}</summary>{content}</details>\n'
        )
    return (
        f'<details class="adult"><summary>{plain(title)} (adult content, blurred)</summary>'
        f'<input class="sharp" type="checkbox" id="sharp-{key}"> <label for="sharp-{key}">show them sharp</label>'
        f'<div class="hazy">{content}</div></details>\n'
    )


def _grid(title: str, grid: Grid) -> str:
    """The prompts as a numbered list, and a table of one row a model."""
    prompts = "".join(
        f"<li>{plain(sample.text)} <small>{plain(sample.record.split)}, seed {sample.record.seed}</small></li>"
        for sample in grid.prompts
    )
    heads = "".join(f'<th scope="col" role="columnheader">{k + 1}</th>' for k in range(len(grid.prompts)))
    rows = ""
    for name, pictures in grid.rows.items():
        cells = "".join(_picture(k + 1, name, *pair) for k, pair in enumerate(zip(grid.prompts, pictures, strict=True)))
        rows += f'<tr role="row"><th scope="row" role="rowheader">{plain(name)}</th>{cells}</tr>\n'
    label = plain(f"{title}, pictures of {grid.case}")
    return f"""<div class="scroll" role="region" tabindex="0" aria-label="{label}">
<p class="quiet">{plain(CHOICE)}</p><ol>{prompts}</ol>
<table class="pictures" role="table" aria-label="{label}">
<thead role="rowgroup"><tr role="row"><td></td>{heads}</tr></thead>
<tbody role="rowgroup">{rows}</tbody></table></div>
"""


def _picture(number: int, name: str, sample: JudgedSample, picture: Picture) -> str:
    mark, kind = {True: ("✓ ", "good"), False: ("✗ ", "bad"), None: ("", "quiet")}[picture.good]
    what = plain(f"{name}: {sample.text}; {picture.note}")
    return (
        f'<td role="cell" data-label="{number}">{_image(picture, what)}<span class="{kind}">{mark}{picture.note}</span>'
        "</td>"
    )


def _image(picture: Picture, what: str) -> str:
    """A picture in its frame; `what` is escaped."""
    if not picture.png:
        return '<span class="missing">no picture</span> '
    small = ' class="small"' if picture.small else ""
    return f'<span class="frame"><img{small} alt="{what}" src="data:image/png;base64,{picture.png}"></span>'
