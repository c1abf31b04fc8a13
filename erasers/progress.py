"""What is shown of work that takes a while: a bar on a terminal, and now and then a line where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0

Advance = Callable[..., None]
"""(how much was done, what else is to be shown) -> None; the latter may be left out."""

_open: list[_Lines] = []
"""Lines of what is going on, the outermost first."""


@contextmanager
def progress(console: Console | None, title: str, total: int) -> Iterator[Advance]:
    """Show how much of something is done, and how long the rest will take.

    On a terminal that is a bar, which is gone in the end; elsewhere, as in the log of a job, one line at the start and
    then at most one every `SECONDS_BETWEEN_LINES`.

    Args:
        console: Where; None shows nothing.
        title: What is done.
        total: How much there is.
    """
    if console is None:
        yield lambda count, text="": None
    elif console.is_terminal or console.is_jupyter:
        columns = (SpinnerColumn(), TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.description}"), console=console, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda count, text="": bar.update(task, advance=count, description=text)
    else:
        lines = _Lines(console, title, total)
        _open.append(lines)
        try:
            yield lines.advance
        finally:
            _open.remove(lines)


class _Lines:
    """Lines on what is done; what is done inside of something else keeps to the intervals of that."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        self.console, self.title, self.total = console, title, total
        self.done, self.told = 0, time.monotonic()
        self.first: tuple[float, int] | None = None
        if total and not _open:
            self._print(f"{total} to do")

    def advance(self, count: int, text: str = "") -> None:
        """Add to what is done; a line if the last is long enough ago."""
        self.done += count
        now, clock = time.monotonic(), _open[0] if _open else self
        # What an interrupted training had done before is told first; it says nothing about speed.
        since, before = self.first = self.first or (now, self.done)
        if now - clock.told < SECONDS_BETWEEN_LINES:
            return
        clock.told = now
        shown = [f"{self.done} of {self.total}", text]
        if self.done > before:
            shown.append(f"about {_span((now - since) / (self.done - before) * (self.total - self.done))} left")
        self._print(", ".join(words for words in shown if words))

    def _print(self, line: str) -> None:
        self.console.print(f"{self.title}: {line}", markup=False, highlight=False)


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
