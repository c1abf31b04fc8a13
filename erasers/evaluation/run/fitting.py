"""The stage of a task in which the patches of its methods are fitted, each once, by whichever process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from erasers.concept import Concept, as_concepts
from erasers.diffusion.counting import Calls
from erasers.eraser import Eraser, Stack, members_of
from erasers.evaluation.run.stage import Stage
from erasers.evaluation.run.states import Row, kept_patch
from erasers.patch import Patch
from erasers.progress import Advance
from erasers.training.loop import TrainedEraser


class Fitting:
    """The patches of a task on its way.

    Args:
        stage: With the rows.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def left(self) -> int:
        """Patches of this process's share that are to be fitted."""
        mine, _ = self.stage.share.split(self._jobs())
        return sum(self.stage.scene(row, case) is None for row, case in mine)

    def work(self, advance: Advance = lambda count: None) -> None:
        """Fit this process's share of what the store has no patch of, then what others have not fitted yet."""
        for row, case in (job for jobs in self.stage.share.split(self._jobs()) for job in jobs):
            if self.stage.scene(row, case) is None:
                self._fit(row, case)
                advance(1)

    def costs(self) -> dict[str, Calls]:
        """Row -> what fitting what is lacking of it will put through the networks, by counting; trainings alone."""
        costs: dict[str, Calls] = {}
        for row, case in self._jobs():
            concepts = as_concepts(self.stage.task.concepts(case))
            if row.eraser is None or not row.eraser.trains or self.stage.scene(row, case) is not None:
                continue
            for number, eraser in enumerate(members_of(row.eraser)):
                if isinstance(eraser, TrainedEraser):
                    kept = number == 0 and self._kept(row, row.eraser, case, concepts)[0]
                    calls = Calls() if kept else eraser.cost(self.stage.pipe, concepts)
                    costs[row.name] = costs.get(row.name, Calls()) + calls
        return costs

    def _jobs(self) -> list[tuple[Row, str]]:
        return [(row, case) for row in self.stage.rows if row.eraser for case in self.stage.cases(row)]

    def _fit(self, row: Row, case: str) -> None:
        stage = self.stage
        if row.eraser is None:
            return
        concepts, started = as_concepts(stage.task.concepts(case)), time.perf_counter()
        more: dict[str, Any] = {"memory": stage.memory} if row.eraser.trains else {}
        kept, spent = self._kept(row, row.eraser, case, concepts)
        if kept:
            kept.base_weights(stage.pipe)
        if kept and not isinstance(row.eraser, Stack):
            stage.store.add_patch(stage.patch_key(row, case), kept, spent)
            return
        more |= {"first": kept} if kept else {}
        patch = row.eraser.fit(stage.pipe, concepts, generator=torch.Generator().manual_seed(0), progress=False, **more)
        seconds = None if spent is None else round(spent + time.perf_counter() - started, 4)
        stage.store.add_patch(stage.patch_key(row, case), patch, seconds)

    def _kept(
        self, row: Row, eraser: Eraser, case: str, concepts: Sequence[Concept]
    ) -> tuple[Patch | None, float | None]:
        """The patch of a method, in a stack the first one, and the seconds that it took.

        The task may bring it along, and does not say how long it took; that of a stack's first method may be in the
        store. Without either there is nothing yet, and nothing was spent.
        """
        task, method, first = self.stage.task, (row.method or "").partition("+")[0], members_of(eraser)[0]
        if kept := kept_patch(task.places(task.patches), method, first, case, concepts):
            return kept, None
        if isinstance(eraser, Stack):
            alone = self.stage.patch_key(Row(method, row.kind, method, first), case)
            if stored := self.stage.store.read_patch(alone):
                return stored[0], stored[1]["edit_seconds"]
        return None, 0.0
