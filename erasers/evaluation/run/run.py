"""Running a task: patches are fitted, pictures drawn and judged, attacks made, then every row is measured and scored.

Any number of processes share the work and one folder; each may be killed at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from erasers.evaluation.pictures.measures import Figures, Measures
from erasers.evaluation.run.attacking import Attacking
from erasers.evaluation.run.fitting import Fitting
from erasers.evaluation.run.picturing import Picturing
from erasers.evaluation.run.stage import Stage
from erasers.evaluation.scores import scoring
from erasers.evaluation.scores.calibration import stored_all
from erasers.evaluation.scores.records import UNEDITED
from erasers.evaluation.scores.results import FORMAT, write_result
from erasers.evaluation.scores.scoring import Cases
from erasers.progress import Advance
from erasers.version import library_version

Progress = Callable[[int], AbstractContextManager[Advance]]


class Run:
    """A task on its way: `fitting`, `picturing` and `attacking` work in this order, then `write` has its results.

    Args:
        stage: The task, with its pipeline, judge, folder and rows.

    Raises:
        UnsupportedPipeline: A pipeline that the task's attacks do not support.
        ValueError: An attack that draws more pictures than its control.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.fitting, self.picturing, self.attacking = Fitting(stage), Picturing(stage), Attacking(stage)
        self.measures = Measures(stage.store, stage.task.model, stage.task.named_cases, stage.task.clip)

    @property
    def damaged(self) -> int:
        """Entries of the store that did not match their hashes, and were made anew."""
        journals = (self.picturing.verdicts, self.attacking.outcomes, self.measures.journal)
        return self.stage.store.damage + sum(journal.damaged for journal in journals)

    def write(self, progress: Progress = lambda total: nullcontext(lambda count: None)) -> list[Path]:
        """Measure and score the rows and write their result files; pictures, verdicts and attacks have to be there.

        Args:
            progress: Shows how many of so many measurements are done, inside its context.
        """
        cases = self._finished()
        with progress(self.measures.left(cases)) as advance:
            measured = self.measures.measure(cases, advance)
        return self._write(measured.cases, measured.figures)

    def _write(self, cases: Mapping[str, Cases], figures: Mapping[str, Figures]) -> list[Path]:
        head, paths = self._head(), []
        plans, calibration = head["task"].get("attacks"), head["judge"].get("calibration")
        for row in (row for row in self.stage.all_rows if row.name in cases):
            mine, sets = cases[row.name], figures.get(row.name, {})
            facts = {"plans": plans, "figures": sets, "calibration": calibration}
            scores = scoring.scores(mine, cases[UNEDITED], self.stage.task.scheme, **facts)
            data = head | {"row": row.to_json(), "cases": mine, "figures": sets, "scores": scores}
            paths.append(self.stage.out / self.stage.task.folder / f"{row.name}.json")
            write_result(paths[-1], data)
        return paths

    def _finished(self) -> dict[str, dict[str, Any]]:
        """Row -> case -> what was judged and attacked."""
        self.picturing.verdicts.refresh()
        self.attacking.outcomes.refresh()
        cases: dict[str, dict[str, Any]] = {}
        for scene in self.stage.scenes:
            for case in scene.cases:
                cases.setdefault(scene.row.name, {})[case] = {
                    "model": scene.model,
                    "patch": scene.patch,
                    "samples": self.picturing.results(scene, case),
                    "attacks": self.attacking.results(scene, case),
                }
        return cases

    def _head(self) -> dict[str, Any]:
        stage = self.stage
        judge: dict[str, Any] = {"name": stage.judge.name, "fingerprint": stage.judge.fingerprint.digest}
        wants = [sample.wants for samples in stage.draws.values() for sample in samples]
        if errors := stored_all(stage.judge, wants):
            judge["calibration"] = errors
        head = {
            "format": FORMAT,
            "task": stage.task.to_json(),
            "library": library_version(),
            "model": stage.model,
            "drawn": stage.drawn,
            "judge": judge,
        }
        # With one text encoder the attack's own `encoder` says it all.
        several = getattr(stage.pipe, "text_encoder_2", None) is not None
        return head | ({"attacked": self.attacking.components} if several and stage.task.attacks else {})
