"""The leaderboard: `leaderboard.md` and `leaderboard.html` from result files, the same for the same results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from erasers.atomic import write_atomically
from erasers.card import markdown_text
from erasers.evaluation.bootstrap import Estimate
from erasers.evaluation.leaderboard_files import read_tasks
from erasers.evaluation.leaderboard_html import COLUMNS, INTRODUCTION, about, html_page
from erasers.evaluation.leaderboard_views import (
    Board,
    Row,
    TaskView,
    options_text,
    score_text,
    shown_samples,
    size_text,
    tag_of,
    task_view,
    time_text,
)


def write_leaderboard(results: Sequence[Path], out: Path, *, allow_adult: bool = False) -> None:
    """Write `leaderboard.md` and `leaderboard.html` into a folder, from results alone and the same every time.

    Pictures are read from the folder `images` of the store that the results are in, and left out where there are none.

    Args:
        results: Result files, or folders with `<task>@<version>/<row>.json`, in any order.
        out: Folder; made if needed.
        allow_adult: Put the pictures of adult tasks into the page, blurred; without it they are left out.

    Raises:
        ValueError: No results, or damaged ones or pictures, or results that do not belong together; it names the file.
        OSError: A file that cannot be read or written.
    """
    tasks = read_tasks(results)
    views = [task_view(title, rows, allow_adult=allow_adult) for title, rows in tasks.items()]
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (("leaderboard.md", _markdown(views)), ("leaderboard.html", html_page(views))):
        _write(out / name, text)


def shown_images(results: Sequence[Path]) -> list[str]:
    """Keys of the pictures that the leaderboard shows, sorted: all it needs of a store. None of adult tasks.

    Raises:
        ValueError: Results that are refused; see `write_leaderboard`.
        OSError: A file that cannot be read.
    """
    shown = (shown_samples(rows) for rows in read_tasks(results).values() if not rows[0].adult)
    return sorted({sample.image for samples in shown for sample in samples})


def _markdown(views: Sequence[TaskView]) -> str:
    columns = "\n".join(f"* **{name}**: {why}" for name, why in COLUMNS.items())
    return f"# Leaderboard of concept erasure\n\n{INTRODUCTION}\n\n{columns}\n" + "".join(map(_task, views))


def _task(view: TaskView) -> str:
    first, *others = view.boards
    parts = [f"## {markdown_text(view.title)}", about(view, _foreign), _table(first, ranked=True)]
    parts += view.notes
    if options := [_options(row) for row in first.rows if row.options]:
        parts.append("Options:\n\n" + "\n".join(options))
    for board in others:
        parts += [f"### {markdown_text(board.case)}", _table(board)]
    return "".join(f"\n{part}\n" for part in parts)


def _table(board: Board, *, ranked: bool = False) -> str:
    heads = [*(["rank"] if ranked else []), "row", *board.columns, "patch", "edit"]
    lines = [heads, ["---"] * len(heads)]
    for row in board.rows:
        costs = ((row.nbytes, size_text), (row.seconds, time_text))
        line = [row.rank or "–"] if ranked else []
        line += [_name(row), *(_score(row.scores[name]) for name in board.columns)]
        lines.append(line + ["–" if cost is None else text(cost) for cost, text in costs])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name(row: Row) -> str:
    """The name of a row and what it is where it is no method."""
    kind = f" ({tag})" if (tag := tag_of(row)) else ""
    only = f", only {_foreign(', '.join(row.only))}" if row.only else ""
    return f"**{markdown_text(row.name)}**{kind}{only}"


def _options(row: Row) -> str:
    return f"* **{markdown_text(row.name)}**: {_foreign(options_text(row.options))}"


def _score(score: Estimate | str) -> str:
    if isinstance(score, str):
        return f"missing ({_foreign(score)})"
    value, interval = score_text(score)
    return f"{value} ({interval})"


def _foreign(text: object) -> str:
    return markdown_text(text, 1000)


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda part: part.write_bytes(text.encode()))
