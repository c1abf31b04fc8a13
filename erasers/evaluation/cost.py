"""What drawing a task may take: an estimate from one stated time a picture, not a measurement of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from erasers.evaluation.profile import is_shapes
from erasers.evaluation.tasks import Task

_PASSES_OF_A_GRADIENT = 3
"""Forward passes of the denoiser that a forward and a backward pass take as long as."""


@dataclass(frozen=True)
class Pace:
    """How long one picture takes.

    Args:
        seconds: For one picture.
        hours: What its hours are called.
        basis: Where the number comes from.
    """

    seconds: float
    hours: str
    basis: str


def pace(task: Task) -> Pace:
    """1.2 s on an A100 for 50 steps at 512 x 512 in float16, scaled by steps and pixels; `shapes` was measured."""
    steps = task.sampling.steps or 50
    if is_shapes(task.model):
        return Pace(0.26 * steps / 20, "CPU-hours", f"measured on one core of a CPU at {steps} steps")
    size = task.sampling.size or 512
    seconds = 1.2 * steps / 50 * (size / 512) ** 2
    return Pace(seconds, "GPU-hours", f"assumed for an A100 at {steps} steps, {size} x {size}, float16")


def estimate(task: Task, pictures: int, rows: int) -> Iterator[str]:
    """Lines on what is to be drawn, and on what attacks may spend at most.

    Args:
        task: The task.
        pictures: To draw, those of attacks aside.
        rows: How many rows are attacked.
    """
    one = pace(task)
    yield f"estimate  {_hours(pictures, one)} for {pictures} pictures, {one.seconds:.2g} s each ({one.basis})"
    # A picture with guidance is two passes a step.
    share = _PASSES_OF_A_GRADIENT / (2 * (task.sampling.steps or 50))
    spent = 0.0
    for label, plan in task.attacks.items():
        budget, prompts = plan.attack.budget(), plan.samples * len(task.cases) * rows
        gradients, images = prompts * budget.gradients, prompts * (budget.images + plan.replicate)
        spent += images + share * gradients
        yield f"attack {label}  at most {gradients} gradients and {images} pictures"
    if task.attacks:
        yield f"estimate  at most {_hours(spent, one)} for attacks, a gradient as {_PASSES_OF_A_GRADIENT} passes"


def _hours(pictures: float, one: Pace) -> str:
    return f"{pictures * one.seconds / 3600:.2g} {one.hours}"
