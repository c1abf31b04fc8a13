"""What the harness adds to drawing: `shapes` pictures drawn, judged and kept by a run, against the pipeline alone.

    python benchmarks/overhead.py                    # 3 rounds of the unedited row of shapes-smoke
    python benchmarks/overhead.py --rounds 5 --threads 1

Both sides draw the same pictures in the same batches, taking turns; a round is judged by CPU time, which other work on
the machine disturbs least. The run draws into an empty folder, judges, writes pictures and verdicts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from erasers import load_pipeline
from erasers.evaluation.run.run import Run
from erasers.evaluation.run.stage import Stage
from erasers.evaluation.run.units import units
from erasers.evaluation.tasks.task import Task, read_task
from erasers.judges import get_judge


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds and seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def plain(pipe: object, run: Run) -> None:
    """The pictures of the run's first row, by the pipeline alone."""
    sampling = run.stage.task.sampling
    (scene,) = [scene for scene in run.stage.scenes if scene.row.name == "unedited"]
    for unit in units(run.stage, scene):
        asks = [samples[0] for _, samples in unit.pictures]
        noise = [torch.Generator("cpu").manual_seed(ask.seed) for ask in asks]
        options = {"num_inference_steps": sampling.steps, "guidance_scale": sampling.guidance}
        pipe([ask.text for ask in asks], generator=noise, **options)  # type: ignore[operator]


def measure(task: Task, rounds: int) -> dict[str, object]:
    """Ratios of CPU time and time, run over plain, by round."""
    pipe = load_pipeline(task.model)
    pipe.set_progress_bar_config(disable=True)
    judge = get_judge(task.judge)
    ratios: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            run = Run(Stage(task, pipe, judge, Path(folder)))
            sides = [lambda run=run: plain(pipe, run), run.picturing.work]
            times = [timed(side) for side in (sides if number % 2 else sides[::-1])]
            first, second = times if number % 2 else times[::-1]
            if number:  # the first round warms up
                ratios.append((second[0] / first[0], second[1] / first[1]))
            pictures = sum(len(unit.pictures) for scene in run.stage.scenes for unit in units(run.stage, scene))
    cpu, wall = zip(*ratios, strict=True)
    return {
        "task": task.name,
        "pictures": pictures,
        "rounds": rounds,
        "cpu_ratio": round(statistics.median(cpu), 4),
        "cpu_ratios": [round(value, 4) for value in cpu],
        "seconds_ratio": round(statistics.median(wall), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = read_task("shapes-smoke")
    # Rows and attacks come with work of their own; references too.
    task = replace(task, references={}, attacks={})
    print(json.dumps(measure(task, options.rounds)))


if __name__ == "__main__":
    main()
