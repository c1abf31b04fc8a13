"""What a task may take: passes of the denoiser, counted, times one stated time a pass; no measurement of this machine.

    seconds = s (p steps pictures + passes + 3 gradients + encodes / 50)

where s is the time of one pass, p is 2 with guidance and 1 without, and attacks spend all that their budgets allow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from erasers import worlds
from erasers.diffusion.counting import Calls
from erasers.evaluation.scores.records import UNEDITED
from erasers.evaluation.tasks.attacks import Plan
from erasers.evaluation.tasks.task import Task

_PASSES_OF_A_GRADIENT = 3
"""Forward passes of the denoiser that a forward and a backward pass take as long as."""
_ENCODES_OF_A_PASS = 50
"""Texts that an encoder of Stable Diffusion 1 reads in the time of a pass, by counting multiplications."""


@dataclass(frozen=True)
class Work:
    """What goes through the networks.

    Args:
        pictures: Drawn.
        passes: Other passes of the denoiser without gradients; a batch of four counts four.
        gradients: Backward passes through the denoiser, likewise.
        encodes: Texts besides those that were drawn.
    """

    pictures: int = 0
    passes: int = 0
    gradients: int = 0
    encodes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.pictures + other.pictures,
            self.passes + other.passes,
            self.gradients + other.gradients,
            self.encodes + other.encodes,
        )

    def times(self, count: int) -> Work:
        """So many times as much."""
        return Work(self.pictures * count, self.passes * count, self.gradients * count, self.encodes * count)


@dataclass(frozen=True)
class Pace:
    """How long things take.

    Args:
        seconds: For one pass of the denoiser.
        picture: Passes of one picture.
        hours: What its hours are called.
        basis: Where the number comes from.
    """

    seconds: float
    picture: int
    hours: str
    basis: str

    def of(self, work: Work) -> float:
        """Hours."""
        passes = self.picture * work.pictures + work.passes + _PASSES_OF_A_GRADIENT * work.gradients
        return self.seconds * (passes + work.encodes / _ENCODES_OF_A_PASS) / 3600

    def said(self, work: Work) -> str:
        """Hours, as they are shown."""
        return f"{self.of(work):.2g} {self.hours}"


@dataclass(frozen=True)
class Load:
    """A row that is to be drawn.

    Args:
        name: Of the row.
        pictures: To draw, those of attacks aside.
        cases: That it has, and is attacked in.
    """

    name: str
    pictures: int
    cases: Sequence[str]


def pace(task: Task) -> Pace:
    """1.2 s on an A100 for 50 steps at 512 x 512 in float16, scaled by pixels; embedded models were measured."""
    steps = task.sampling.steps or 50
    passes = steps * (1 if task.sampling.guidance is not None and task.sampling.guidance <= 1 else 2)
    if world := worlds.find(task.model):
        return Pace(world.seconds, passes, "CPU-hours", f"measured on one core of a CPU at {steps} steps")
    size = task.sampling.size or 512
    basis = f"assumed for an A100 at {steps} steps, {size} x {size}, float16"
    return Pace(1.2 / 100 * (size / 512) ** 2, passes, "GPU-hours", basis)


def loads(task: Task, rows: Mapping[str, Sequence[str]]) -> list[Load]:
    """All pictures of rows (name -> cases), counted from the task alone: the most, where files have the prompts."""
    return [Load(name, _pictures(task, cases, shared=name == UNEDITED), cases) for name, cases in rows.items()]


def estimate(task: Task, rows: Sequence[Load], fits: Mapping[str, Calls] | None = None) -> Iterator[str]:
    """Lines on what is to be drawn and fitted, and on what attacks may spend at most.

    Args:
        task: The task.
        rows: Those that are drawn and attacked.
        fits: Row -> what its trainings put through the networks; None where nobody counted.
    """
    speed, ready = pace(task), Work()
    attacked = {row.name: Work() for row in rows}
    for row in rows:
        for plan in task.attacks.values():
            attacked[row.name] += sum((_spent(task, plan, case) for case in row.cases), Work())
        more = f"at most {speed.said(Work(row.pictures) + attacked[row.name])} with attacks"
        yield f"{row.name}  {row.pictures} pictures to draw; {more if task.attacks else speed.said(Work(row.pictures))}"
    pictures = sum(row.pictures for row in rows)
    seconds = speed.seconds * speed.picture
    each = f"{seconds:.2g} s each ({speed.basis})" + ("; fitting is not counted" if fits is None else "")
    yield f"estimate  {speed.said(Work(pictures))} for {pictures} pictures, {each}"
    for name, calls in (fits or {}).items():
        work = Work(passes=calls.denoiser, gradients=calls.gradients, encodes=calls.texts)
        yield f"fit {name}  {calls}; {speed.said(work)}"
    cases = list(dict.fromkeys(case for row in rows for case in row.cases))
    for label, plan in task.attacks.items():
        spent = sum((_spent(task, plan, case) for row in rows for case in row.cases), Work())
        ready += sum((_prepared(task, plan, case) for case in cases), Work())
        yield f"attack {label}  at most {spent.gradients} gradients and {spent.pictures} pictures; {speed.said(spent)}"
    if task.attacks:
        total = speed.said(sum(attacked.values(), ready))
        yield f"estimate  at most {total} for attacks, {speed.said(ready)} of it once for all rows"


def _pictures(task: Task, cases: Sequence[str], *, shared: bool) -> int:
    """Pictures of some cases; `shared` draws one that several cases have once."""
    if any(prompts.source for prompts in task.prompts.values()):
        return sum(sum(task.samples.values()) * len(task.named_cases[case]) for case in cases)
    drawn = [(case, sample.text, sample.seed) for case in cases for sample in task.draws(case)]
    return len({(text, seed) for _, text, seed in drawn} if shared else set(drawn))


def _spent(task: Task, plan: Plan, case: str) -> Work:
    """What an attack on one state of the model in a case spends when nothing succeeds."""
    concepts = task.concepts(case)
    attack, prompts = plan.against(concepts, task.model), _prompts(task, plan, case)
    budget = attack.budget()
    searches = min(len(concepts), prompts) if attack.once else prompts
    search = Work(gradients=budget.gradients, encodes=budget.encodes).times(searches)
    return Work(prompts * (budget.images + plan.replicate)) + search


def _prepared(task: Task, plan: Plan, case: str) -> Work:
    """What getting an attack ready takes, once for all states of the model."""
    concepts = task.concepts(case)
    attack, prompts = plan.against(concepts, task.model), _prompts(task, plan, case)
    size = math.ceil(prompts / len(concepts)) if attack.once else task.sampling.batch
    work = Work()
    for start in range(0, prompts, size):
        once = attack.preparation(min(size, prompts - start))
        work += Work(once.images, once.passes, once.gradients, once.encodes)
    return work


def _prompts(task: Task, plan: Plan, case: str) -> int:
    """Prompts of a case that an attack takes, at most."""
    return min(plan.samples, task.samples.get("explicit", 0) * len(task.named_cases[case]))
