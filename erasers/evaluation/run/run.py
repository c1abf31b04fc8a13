"""Running a task: patches are fitted, pictures drawn and judged where the store lacks them, then every row is scored.

Any number of processes share the work and one folder; each may be killed at any time. Pictures are drawn together in
the same batches whatever is missing and whoever draws, so that the results do not depend on either.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from erasers.concept import as_concepts
from erasers.evaluation.drawing import generate
from erasers.evaluation.pictures.measures import Measures
from erasers.evaluation.run.attacking import Attacking
from erasers.evaluation.run.drawn import picture_facts, picture_key, pixel_hash, record_of
from erasers.evaluation.run.states import (
    REFERENCE,
    Row,
    Scene,
    case_of,
    find_patch,
    find_reference,
    fingerprint,
    reference,
)
from erasers.evaluation.scores import scoring
from erasers.evaluation.scores.calibration import stored_all
from erasers.evaluation.scores.records import UNEDITED
from erasers.evaluation.scores.results import FORMAT
from erasers.evaluation.store import Store, Verdicts, key_of
from erasers.evaluation.tasks.task import Sample, Task
from erasers.judges import Judge
from erasers.models.inputs import Pictures, call_arguments
from erasers.version import library_version

if TYPE_CHECKING:
    from PIL import Image

Advance = Callable[[int], None]
Progress = Callable[[int], AbstractContextManager[Advance]]
T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """Which of several processes this is."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of_environment(cls) -> Share:
        """As `accelerate launch` and `torchrun` say it; the only one when they did not start this process.

        Raises:
            ValueError: Values that make no sense.
        """
        rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdigit() and world.isdigit() and int(rank) < int(world)):
            raise ValueError(f"expected RANK below WORLD_SIZE in the environment, got {rank!r} and {world!r}")
        return cls(int(rank), int(world))

    def split(self, items: Sequence[T]) -> tuple[list[T], list[T]]:
        """What this process does first, and what it does then if nobody else has.

        The others' part comes from the other end, so that two processes seldom do the same.
        """
        others = [item for index, item in enumerate(items) if index % self.world != self.rank]
        return list(items[self.rank :: self.world]), others[::-1]


@dataclass(frozen=True)
class Unit:
    """Pictures that are drawn together: keys, and the samples that each picture is for."""

    scene: Scene
    pictures: Sequence[tuple[str, Sequence[Sample]]]


@dataclass(eq=False)
class Run:
    """A task on its way.

    Args:
        task: The task.
        pipe: The unedited pipeline.
        judge: Of the task.
        out: Folder of the store and of the results.
        rows: Beside the unedited row and the reference; their names are distinct.
        share: Which of several processes this is.
        memory: Bytes that there are for what takes gradients; None: what the device has, and no bound on a CPU.
    """

    task: Task
    pipe: Any
    judge: Judge
    out: Path
    rows: Sequence[Row] = ()
    share: Share = field(default_factory=Share)
    memory: int | None = None

    def __post_init__(self) -> None:
        call_arguments(self.pipe, Pictures())
        self.store, self.verdicts = Store(self.out), Verdicts(self.out, self.judge.fingerprint.digest)
        self.draws = {case: self.task.draws(case) for case in self.task.named_cases}
        self.model = fingerprint(self.pipe)
        names = [UNEDITED, REFERENCE, *(row.name for row in self.rows)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected rows with names of their own, got twice: {', '.join(twice)}")
        for patch in (row.patch for row in self.rows if row.patch):
            # Refuse a patch that does not fit before anything is drawn.
            case_of(self.task, patch)
            patch.base_weights(self.pipe)
        self.attacking = Attacking(self)
        self.measures = Measures(self.store, self.task.model, self.task.named_cases, self.task.clip)

    @property
    def lacking(self) -> list[str]:
        """The references that are not on this machine."""
        return [case for case, path in self.task.references.items() if find_reference(self.task.places(path)) is None]

    def cases(self) -> dict[str, list[str]]:
        """Row -> the cases that it has."""
        return {row.name: self._cases(row) for row in self._all_rows()}

    def missing(self) -> dict[str, int]:
        """Row -> pictures that are not there yet; nothing is fitted for it."""
        counts = {}
        for row in self._all_rows():
            known = [scene for case in self._cases(row) if (scene := self.scene(row, case)) is not None]
            unfitted = set(self._cases(row)) - {case for scene in known for case in scene.cases}
            keys = {key for scene in known for unit in self.units(scene) for key, _ in unit.pictures}
            lacking = sum(not self.store.has_image(key) for key in keys)
            counts[row.name] = lacking + sum(len(self.draws[case]) for case in unfitted)
        return counts

    def fit(self, advance: Advance = lambda count: None) -> None:
        """Fit this process's share of what the store has no patch of, then what others have not fitted yet."""
        for row, case in (job for part in self.share.split(self._fits()) for job in part):
            if self.scene(row, case) is None:
                self._fit(row, case)
                advance(1)

    def unfitted(self) -> int:
        """Patches of this process's share that are to be fitted."""
        mine, _ = self.share.split(self._fits())
        return sum(self.scene(row, case) is None for row, case in mine)

    def _fits(self) -> list[tuple[Row, str]]:
        return [(row, case) for row in self.rows if row.eraser for case in self._cases(row)]

    def work(self, advance: Advance = lambda count: None) -> None:
        """Draw and judge this process's share of what is missing, then help with what others have not done yet."""
        for part in self.share.split(self._all_units()):
            for scene, some in _by_scene(part):
                todo = (unit for unit in some if self._unfinished(unit))
                first = next(todo, None)
                if first is None:
                    continue
                with scene.place():
                    self._do(first, advance)
                    for unit in todo:
                        self._do(unit, advance)

    @property
    def damaged(self) -> int:
        """Entries of the store that did not match their hashes, and were made anew."""
        journals = (self.verdicts, self.attacking.outcomes, self.measures.journal)
        return self.store.damage + sum(journal.damaged for journal in journals)

    def left(self) -> int:
        """Pictures of this process's share that are to be drawn or judged."""
        mine, _ = self.share.split(self._all_units())
        return sum(len(unit.pictures) for unit in mine if self._unfinished(unit))

    def write(self, progress: Progress = lambda total: nullcontext(lambda count: None)) -> list[Path]:
        """Measure and score the rows and write their result files; pictures, verdicts and attacks have to be there.

        Args:
            progress: Shows how many of so many measurements are done, inside its context.
        """
        cases = self._finished()
        with progress(self.measures.left(cases)) as advance:
            return self._write(cases, self.measures.add(cases, advance))

    def _write(self, cases: Mapping[str, Any], figures: Mapping[str, Any]) -> list[Path]:
        head, paths = self._head(), []
        plans, calibration = head["task"].get("attacks"), head["judge"].get("calibration")
        for row in (row for row in self._all_rows() if row.name in cases):
            mine, sets = cases[row.name], figures.get(row.name, {})
            facts = {"plans": plans, "figures": sets, "calibration": calibration}
            found = scoring.scores(mine, cases[UNEDITED], self.task.scheme, **facts)
            data = head | {"row": row.to_json(), "cases": mine, "figures": sets, "scores": found}
            paths.append(self.out / self.task.folder / f"{row.name}.json")
            scoring.write_result(paths[-1], data)
        return paths

    def _finished(self) -> dict[str, dict[str, Any]]:
        """Row -> case -> what was judged and attacked."""
        self.verdicts.refresh()
        self.attacking.outcomes.refresh()
        cases: dict[str, dict[str, Any]] = {}
        for scene in self.scenes:
            for case in scene.cases:
                cases.setdefault(scene.row.name, {})[case] = {
                    "model": scene.model,
                    "patch": scene.patch,
                    "samples": self._judged(scene, case),
                    "attacks": self.attacking.results(scene, case),
                }
        return cases

    @cached_property
    def scenes(self) -> list[Scene]:
        """All states of the model, in order; patches have to be fitted."""
        found: list[Scene] = []
        for row in self._all_rows():
            if row.kind == UNEDITED:
                found.append(Scene(row, tuple(self.draws), nullcontext, self.model))
                continue
            for case in self._cases(row):
                scene = self.scene(row, case)
                if scene is None:
                    raise ValueError(f"expected the patch of {row.name} for {case}, got none; fit comes first")
                found.append(scene)
        return found

    def _all_units(self) -> list[Unit]:
        return [unit for scene in self.scenes for unit in self.units(scene)]

    def _all_rows(self) -> list[Row]:
        return [Row(UNEDITED, UNEDITED), Row(REFERENCE, REFERENCE), *self.rows]

    def _cases(self, row: Row) -> list[str]:
        """The cases that a row has."""
        if row.kind == REFERENCE:
            return [case for case in self.task.references if case not in self.lacking]
        return [case_of(self.task, row.patch)] if row.patch else list(self.draws)

    def scene(self, row: Row, case: str) -> Scene | None:
        """The state of the model for one case; None when its patch was not fitted yet."""
        if row.kind == UNEDITED:
            return Scene(row, (case,), nullcontext, self.model)
        if row.kind == REFERENCE:
            folder = find_reference(self.task.places(self.task.references[case])) or Path()
            with reference(self.pipe, folder):
                model = fingerprint(self.pipe)
            return Scene(row, (case,), lambda: reference(self.pipe, folder), model)
        if row.patch:
            patch, cost = row.patch, {"bytes": row.patch.nbytes, "edit_seconds": None}
        else:
            stored = self.store.read_patch(self._patch_key(row, case))
            if stored is None:
                return None
            patch, cost = stored
        facts = {"digest": patch.digest, **cost}
        return Scene(row, (case,), lambda: patch.applied(self.pipe), self.model, facts)

    def _fit(self, row: Row, case: str) -> None:
        if row.eraser is None:
            return
        concepts, started = as_concepts(self.task.concepts(case)), time.perf_counter()
        if fitted := find_patch(self.task.places(self.task.patches), row.method, row.eraser, case, concepts):
            fitted.base_weights(self.pipe)
            self.store.add_patch(self._patch_key(row, case), fitted, None)
            return
        more: dict[str, Any] = {"memory": self.memory} if row.eraser.trains else {}
        patch = row.eraser.fit(self.pipe, concepts, generator=torch.Generator().manual_seed(0), progress=False, **more)
        self.store.add_patch(self._patch_key(row, case), patch, round(time.perf_counter() - started, 4))

    def _patch_key(self, row: Row, case: str) -> str:
        concepts = [asdict(concept) for concept in self.task.concepts(case)]
        options = row.to_json()["options"]
        return key_of({"method": row.method, "options": options, "concepts": concepts, "model": self.model})

    def units(self, scene: Scene) -> Iterator[Unit]:
        """The pictures of a scene in batches; a picture that several samples share is in the first of theirs."""
        pictures: dict[str, list[Sample]] = {}
        for case in scene.cases:
            for sample in self.draws[case]:
                pictures.setdefault(self._image_key(scene, sample), []).append(sample)
        batch, items = self.task.sampling.batch, list(pictures.items())
        return (Unit(scene, items[start : start + batch]) for start in range(0, len(items), batch))

    def _image_key(self, scene: Scene, sample: Sample) -> str:
        return picture_key(sample.text, sample.seed, self.picture_facts(scene))

    def picture_facts(self, scene: Scene) -> dict[str, Any]:
        """What the pictures of a scene depend on beside their prompts and seeds."""
        return picture_facts(scene.model, scene.patch["digest"] if scene.patch else "", self.task.sampling, self.drawn)

    @cached_property
    def drawn(self) -> dict[str, Any]:
        """How this process draws, as results have it."""
        return record_of(self.pipe)

    def _unfinished(self, unit: Unit) -> bool:
        if not all(self.store.has_image(key) for key, _ in unit.pictures):
            return True
        if self._unjudged(unit):
            # Another process may have judged them since.
            self.verdicts.refresh()
        return bool(self._unjudged(unit))

    def _unjudged(self, unit: Unit) -> list[tuple[str, Sample]]:
        pairs = ((key, sample) for key, samples in unit.pictures for sample in samples)
        return [(key, sample) for key, sample in pairs if self.verdicts.get(key, sample.wants) is None]

    def _do(self, unit: Unit, advance: Advance) -> None:
        """Draw the unit unless all of it is there, then judge what has no verdict; the model is in its state."""
        if not all(self.store.has_image(key) for key, _ in unit.pictures):
            for (key, _), image in zip(unit.pictures, self.draw(unit), strict=True):
                self.store.add_image(key, image)
        pairs = self._unjudged(unit)
        images = [self.store.read_image(key) for key, _ in pairs]
        verdicts = self.judge.judge(images, [sample for _, sample in pairs])
        self.verdicts.add(
            (key, sample.wants, verdict, pixel_hash(image))
            for (key, sample), verdict, image in zip(pairs, verdicts, images, strict=True)
        )
        advance(len(unit.pictures))

    def draw(self, unit: Unit) -> list[Image.Image]:
        """The pictures of a unit, drawn together; the model is in its state."""
        asks, sampling = [samples[0] for _, samples in unit.pictures], asdict(self.task.sampling)
        return next(iter(generate(self.pipe, asks, **sampling | {"batch": len(asks)})))

    def _judged(self, scene: Scene, case: str) -> list[dict[str, Any]]:
        """The samples of a case as results have them."""
        found = []
        for sample in self.draws[case]:
            key = self._image_key(scene, sample)
            verdict = self.verdicts.get(key, sample.wants)
            if verdict is None:
                raise ValueError(
                    f"expected a verdict on every picture, got none on {sample.text!r}; run the task again"
                )
            facts = {"image": key, "value": verdict.value, "probability": verdict.probability}
            facts |= {"pixels": self.verdicts.pixels(key, sample.wants)}
            facts |= {"reason": verdict.reason} if verdict.value is None else {}
            found.append(asdict(sample) | facts)
        return sorted(found, key=lambda one: (one["split"], one["text"], one["seed"]))

    def _head(self) -> dict[str, Any]:
        judge: dict[str, Any] = {"name": self.judge.name, "fingerprint": self.judge.fingerprint.digest}
        wants = [sample.wants for some in self.draws.values() for sample in some]
        if errors := stored_all(self.judge, wants):
            judge["calibration"] = errors
        return {
            "format": FORMAT,
            "task": self.task.to_json(),
            "library": library_version(),
            "model": self.model,
            "drawn": self.drawn,
            "judge": judge,
        }


def _by_scene(units: Sequence[Unit]) -> Iterator[tuple[Scene, list[Unit]]]:
    """Neighbouring units of one scene together."""
    group: list[Unit] = []
    for unit in units:
        if group and unit.scene is not group[0].scene:
            yield group[0].scene, group
            group = []
        group.append(unit)
    if group:
        yield group[0].scene, group
