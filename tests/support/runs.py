"""Tasks that run to their end, or are killed on their way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from erasers.evaluation.run.run import Run


def complete(run: Run) -> list[Path]:
    """Do all of a run; the files of its results."""
    for work in (run.fitting, run.picturing, run.attacking):
        work.work()
        assert work.left() == 0
    return run.write()


def results(out: Path) -> dict[str, bytes]:
    """The result files of the only task in a folder."""
    (folder,) = out.glob("*@*")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed_after(total: int) -> Callable[[int], None]:
    """Told of progress, it raises `InterruptedError` once so much is done."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if done >= total:
            raise InterruptedError

    return advance
