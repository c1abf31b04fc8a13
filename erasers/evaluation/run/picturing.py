"""The stage of a task in which its pictures are drawn and judged where the store lacks them.

Pictures are drawn together in the same batches whatever is missing and whoever draws, so that the results do not
depend on either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from erasers.evaluation.run.drawn import pixel_hash
from erasers.evaluation.run.stage import Stage
from erasers.evaluation.run.states import Scene
from erasers.evaluation.run.units import Unit, draw, units
from erasers.evaluation.store import Verdicts
from erasers.evaluation.tasks.task import Sample
from erasers.progress import Advance


class Picturing:
    """The pictures of a task on its way, and their verdicts.

    Args:
        stage: With the states of the model.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage, self.verdicts = stage, Verdicts(stage.out, stage.judge.fingerprint.digest)

    def missing(self) -> dict[str, int]:
        """Row -> pictures that are not there yet; nothing is fitted for it."""
        stage, counts = self.stage, {}
        for row in stage.all_rows:
            known = [scene for case in stage.cases(row) if (scene := stage.scene(row, case)) is not None]
            unfitted = set(stage.cases(row)) - {case for scene in known for case in scene.cases}
            keys = {key for scene in known for unit in units(stage, scene) for key, _ in unit.pictures}
            lacking = sum(not stage.store.has_image(key) for key in keys)
            counts[row.name] = lacking + sum(len(stage.draws[case]) for case in unfitted)
        return counts

    def left(self) -> int:
        """Pictures of this process's share that are to be drawn or judged."""
        mine, _ = self.stage.share.split(self._all_units())
        return sum(len(unit.pictures) for unit in mine if self._unfinished(unit))

    def work(self, advance: Advance = lambda count: None) -> None:
        """Draw and judge this process's share of what is missing, then help with what others have not done yet."""
        for share in self.stage.share.split(self._all_units()):
            for _, neighbours in groupby(share, key=lambda unit: id(unit.scene)):
                todo = (unit for unit in neighbours if self._unfinished(unit))
                first = next(todo, None)
                if first is None:
                    continue
                with first.scene.enter():
                    self._do(first, advance)
                    for unit in todo:
                        self._do(unit, advance)

    def results(self, scene: Scene, case: str) -> list[dict[str, Any]]:
        """The samples of a case as results have them.

        Raises:
            ValueError: A picture has not been judged yet.
        """
        samples = []
        for sample in self.stage.draws[case]:
            key = self.stage.picture_key(scene, sample)
            verdict = self.verdicts.get(key, sample.wants)
            if verdict is None:
                raise ValueError(
                    f"expected a verdict on every picture, got none on {sample.text!r}; run the task again"
                )
            facts = {"image": key, "value": verdict.value, "probability": verdict.probability}
            facts |= {"pixels": self.verdicts.pixels(key, sample.wants)}
            facts |= {"reason": verdict.reason} if verdict.value is None else {}
            samples.append(asdict(sample) | facts)
        return sorted(samples, key=lambda sample: (sample["split"], sample["text"], sample["seed"]))

    def _all_units(self) -> list[Unit]:
        return [unit for scene in self.stage.scenes for unit in units(self.stage, scene)]

    def _unfinished(self, unit: Unit) -> bool:
        if not self._is_drawn(unit):
            return True
        if self._unjudged(unit):
            # Another process may have judged them since.
            self.verdicts.refresh()
        return bool(self._unjudged(unit))

    def _is_drawn(self, unit: Unit) -> bool:
        return all(self.stage.store.has_image(key) for key, _ in unit.pictures)

    def _unjudged(self, unit: Unit) -> list[tuple[str, Sample]]:
        pairs = ((key, sample) for key, samples in unit.pictures for sample in samples)
        return [(key, sample) for key, sample in pairs if self.verdicts.get(key, sample.wants) is None]

    def _do(self, unit: Unit, advance: Advance) -> None:
        """Draw the unit unless all of it is there, then judge what has no verdict; the model is in its state."""
        if not self._is_drawn(unit):
            for (key, _), image in zip(unit.pictures, draw(self.stage, unit), strict=True):
                self.stage.store.add_image(key, image)
        self._judge(self._unjudged(unit))
        advance(len(unit.pictures))

    def _judge(self, pairs: Sequence[tuple[str, Sample]]) -> None:
        images = [self.stage.store.read_image(key) for key, _ in pairs]
        verdicts = self.stage.judge.judge(images, [sample for _, sample in pairs])
        self.verdicts.add(
            (key, sample.wants, verdict, pixel_hash(image))
            for (key, sample), verdict, image in zip(pairs, verdicts, images, strict=True)
        )
