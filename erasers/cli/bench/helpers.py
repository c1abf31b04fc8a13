"""Processes of `erase bench run` that share the work."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from erasers.cli.bench.start import Start
from erasers.cli.console import err

if TYPE_CHECKING:
    from erasers.evaluation.run.run import Run

_WORTH_A_PROCESS = 300
"""Pictures that take longer to draw than another process takes to start."""
_PATIENCE = 20.0
"""Seconds in which another process may end what all others have done, too."""


def work(job: Run, console: Console | None) -> None:
    """Fit, draw, judge and attack."""
    from erasers.progress import progress

    with progress(console, "erasing", job.fitting.left() if console else 0) as advance:
        job.fitting.work(advance)
    with progress(console, "drawing and judging", job.picturing.left() if console else 0) as advance:
        job.picturing.work(advance)
    if job.stage.task.attacks:
        with progress(console, "attacking", job.attacking.left() if console else 0) as advance:
            job.attacking.work(advance)


@contextmanager
def helped(job: Run, processes: int | None, start: Start) -> Iterator[None]:
    """Inside, other processes work on the same task; what they leave, this one does.

    Args:
        job: This process's.
        processes: How many there are then; None: as many as pay.
        start: What this process began with.
    """
    world = processes or _paying(job)
    if world == 1:
        yield
        return
    import torch

    from erasers.processes import Share

    context, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    helpers = [context.Process(target=_help, args=(start, rank, world), daemon=True) for rank in range(1, world)]
    for helper in helpers:
        helper.start()
    job.stage.share = Share(0, world)
    torch.set_num_threads(max(1, threads // world))
    try:
        yield
        for helper in helpers:
            helper.join(_PATIENCE)
        failed = [helper for helper in helpers if helper.exitcode]
        if failed:
            err.print(f"{len(failed)} of {world} processes failed; their work was done by the others")
    finally:
        torch.set_num_threads(threads)
        for helper in helpers:
            helper.terminate()
            helper.join()


def _paying(job: Run) -> int:
    """One process, or one for each core where a network is too small to make use of several for one picture."""
    from erasers import worlds

    small = worlds.find(job.stage.task.model) and job.stage.pipe.device.type == "cpu" and "RANK" not in os.environ
    if not small or sum(job.picturing.missing().values()) < _WORTH_A_PROCESS:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _help(start: Start, rank: int, world: int) -> None:
    """What another process does; it says nothing."""
    import torch

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(max(1, torch.get_num_threads() // world))
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        work(start.begin(), None)
