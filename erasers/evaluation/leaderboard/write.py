"""The leaderboard: `leaderboard.md` and `leaderboard.html` from result files, the same for the same results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from erasers.evaluation.leaderboard.figures import figure_of
from erasers.evaluation.leaderboard.html import html_page
from erasers.evaluation.leaderboard.markdown import markdown_page
from erasers.evaluation.leaderboard.pictures import shown_keys
from erasers.evaluation.leaderboard.views import task_view
from erasers.evaluation.scores.results import Result, read_tasks
from erasers.files.atomic import write_atomically


def write_leaderboard(
    results: Sequence[Path], out: Path, *, allow_adult: bool = False, measurements: Sequence[Path] = ()
) -> None:
    """Write `leaderboard.md` and `leaderboard.html` into a folder, from results alone and the same every time.

    Pictures are read from the folder `images` of the store that the results are in, and left out where there are none.

    Args:
        results: Result files, or folders with `<task>@<version>/<row>.json`, in any order.
        out: Folder; made if needed.
        allow_adult: Put the pictures of adult tasks into the page, blurred; without it they are left out.
        measurements: Files of `figures.FIGURES`, drawn behind the tasks.

    Raises:
        ValueError: No results, or damaged ones, pictures or measurements, or results that do not belong together; it
            names the file.
        OSError: A file that cannot be read or written.
    """
    tasks = sorted(read_tasks(results).items(), key=lambda task: _place(*task))
    views = [task_view(title, rows, allow_adult=allow_adult) for title, rows in tasks]
    figures = [figure_of(path) for path in measurements]
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (("leaderboard.md", markdown_page(views)), ("leaderboard.html", html_page(views, figures))):
        _write(out / name, text)


def shown_images(results: Sequence[Path]) -> list[str]:
    """Keys of the pictures that the leaderboard shows, sorted: all it needs of a store. None of adult tasks.

    Raises:
        ValueError: Results that are refused; see `write_leaderboard`.
        OSError: A file that cannot be read.
    """
    shown = (shown_keys(rows) for rows in read_tasks(results).values() if not rows[0].adult)
    return sorted(set().union(*shown))


def _place(title: str, rows: Sequence[Result]) -> tuple[int, int, str]:
    """Tasks that ask for more come first, of those that ask for as much the one with more rows."""
    return -len(rows[0].scheme.pillars), -len(rows), title


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode()))
