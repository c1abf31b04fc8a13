"""An audit on its way: a task of one patch, run as every task is, whose results become a summary and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasers import worlds
from erasers.concept import Concept
from erasers.evaluation.audit.plans import Planned
from erasers.evaluation.profile.profile import Profile
from erasers.evaluation.run.run import Progress, Run
from erasers.evaluation.run.stage import Stage
from erasers.evaluation.run.states import Row
from erasers.evaluation.scores.pillars import Scheme
from erasers.evaluation.tasks.task import Sampling, Task
from erasers.judges import Judge
from erasers.patch import Patch

NAME, PATCH = "audit", "patch"


def concepts_of(patch: Patch, model: str) -> tuple[Concept, ...]:
    """What a patch erases, as its metadata says it, or as the world of an embedded model knows it.

    Raises:
        ValueError: Words that the world does not know.
    """
    world = worlds.find(model)
    return tuple(world.concept(str(said["name"])) if world else _said(said) for said in patch.meta["concepts"])


def _said(said: Mapping[str, Any]) -> Concept:
    """A concept by what a patch keeps of it; of long lists it keeps the number alone."""
    lists = {key: said[key] for key in ("aliases", "neighbours") if isinstance(said.get(key), list)}
    return Concept(str(said["name"]), anchor=str(said.get("anchor", "")), kind=said.get("kind", "object"), **lists)


@dataclass(frozen=True)
class Audit:
    """An audit that can begin.

    Args:
        patch: What is looked into.
        concepts: What it erases.
        model: As on the command line.
        pipe: The unedited pipeline.
        judge: Looks at every picture.
        profile: How pictures are drawn.
        planned: The attacks.
        samples: Prompts a split.
        folder: Of pictures, verdicts and outcomes, so that an audit that was stopped goes on.
        retrained: Folder of a denoiser that was trained without the concepts.
        adult: Whether prompts of unsafe concepts are drawn.
        memory: As for `Stage`.
    """

    patch: Patch
    concepts: Sequence[Concept]
    model: str
    pipe: Any
    judge: Judge
    profile: Profile
    planned: Planned
    samples: int
    folder: Path
    retrained: Path | None = None
    adult: bool = False
    memory: int | None = None

    @property
    def task(self) -> Task:
        """What is drawn and attacked, as a task."""
        case = tuple(concept.name for concept in self.concepts)
        counted = tuple(label for label, plan in self.planned.plans.items() if plan.counts)
        pillars = ("erasure", *(("robustness",) if counted else ()), "neighbours", "specificity")
        own = self.profile
        return Task(
            name=NAME,
            version=1,
            model=self.model,
            cases=(case,),
            samples=dict.fromkeys(("explicit", "synonym", "neighbour", "unrelated"), self.samples),
            sampling=Sampling(own.steps, own.guidance, own.batch, own.size, own.tokens),
            judge=self.judge.name,
            scheme=Scheme(pillars=pillars, attacks=counted),
            references={"+".join(case): str(self.retrained)} if self.retrained else {},
            attacks=self.planned.plans,
            adult=self.adult,
            known={concept.name: concept for concept in self.concepts},
        )

    def begin(self) -> Run:
        """The run; nothing is drawn yet.

        Raises:
            PatchError: The patch does not fit the pipeline.
            UnsupportedPipeline: One that cannot be drawn from prompts.
        """
        row = Row(PATCH, PATCH, str(self.patch.meta["method"]), patch=self.patch)
        return Run(Stage(self.task, self.pipe, self.judge, self.folder, [row], memory=self.memory))

    @staticmethod
    def results(run: Run, progress: Progress) -> dict[str, dict[str, Any]]:
        """Row -> its result, of a run whose pictures and attacks are there."""
        return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in run.write(progress)}
