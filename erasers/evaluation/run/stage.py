"""What all work on a task shares: its model, judge and store, its prompts, its rows and the states of the model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from erasers.evaluation.run.drawn import picture_facts, picture_key, record_of
from erasers.evaluation.run.states import Row, Scene, case_of, find_reference, fingerprint, reference
from erasers.evaluation.scores.records import UNEDITED
from erasers.evaluation.scores.results import REFERENCE
from erasers.evaluation.store import Store, key_of
from erasers.evaluation.tasks.task import Sample, Task
from erasers.judges import Judge
from erasers.models.inputs import Pictures, call_arguments
from erasers.processes import Share


@dataclass(eq=False)
class Stage:
    """A task with all that is there to run it.

    Args:
        task: The task.
        pipe: The unedited pipeline.
        judge: Of the task.
        out: Folder of the store and of the results.
        rows: Beside the unedited row and the reference; their names are distinct.
        share: Which of several processes this is.
        memory: Bytes that there are for what takes gradients; None: what the device has, and no bound on a CPU.

    Attributes:
        store: Of the folder.
        draws: Case -> its prompts.
        model: Fingerprint of the unedited pipeline.

    Raises:
        ValueError: Rows of one name, or a patch of no case.
        PatchError: A patch that does not fit the pipeline.
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
        self.store = Store(self.out)
        self.draws = {case: self.task.draws(case) for case in self.task.named_cases}
        self.model = fingerprint(self.pipe)
        names = [row.name for row in self.all_rows]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected rows with names of their own, got twice: {', '.join(twice)}")
        for patch in (row.patch for row in self.rows if row.patch):
            # Refuse a patch that does not fit before anything is drawn.
            case_of(self.task, patch)
            patch.base_weights(self.pipe)

    @property
    def all_rows(self) -> list[Row]:
        """The rows in the order in which they are drawn."""
        return [Row(UNEDITED, UNEDITED), Row(REFERENCE, REFERENCE), *self.rows]

    @property
    def lacking(self) -> list[str]:
        """The references that are not on this machine."""
        return [case for case, path in self.task.references.items() if find_reference(self.task.places(path)) is None]

    def cases(self, row: Row) -> list[str]:
        """The cases that a row has."""
        if row.kind == REFERENCE:
            return [case for case in self.task.references if case not in self.lacking]
        return [case_of(self.task, row.patch)] if row.patch else list(self.draws)

    @cached_property
    def scenes(self) -> list[Scene]:
        """All states of the model, in order.

        Raises:
            ValueError: A patch has not been fitted.
        """
        scenes: list[Scene] = []
        for row in self.all_rows:
            if row.kind == UNEDITED:
                scenes.append(Scene(row, tuple(self.draws), nullcontext, self.model))
                continue
            for case in self.cases(row):
                scene = self.scene(row, case)
                if scene is None:
                    raise ValueError(f"expected the patch of {row.name} for {case}, got none; fit comes first")
                scenes.append(scene)
        return scenes

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
            stored = self.store.read_patch(self.patch_key(row, case))
            if stored is None:
                return None
            patch, cost = stored
        facts = {"digest": patch.digest, **cost}
        return Scene(row, (case,), lambda: patch.applied(self.pipe), self.model, facts)

    def patch_key(self, row: Row, case: str) -> str:
        """What the fitted patch of a case is kept under."""
        concepts = [asdict(concept) for concept in self.task.concepts(case)]
        options = row.to_json()["options"]
        return key_of({"method": row.method, "options": options, "concepts": concepts, "model": self.model})

    def picture_key(self, scene: Scene, sample: Sample) -> str:
        """What the picture of a prompt is kept under."""
        return picture_key(sample.text, sample.seed, self.picture_facts(scene))

    def picture_facts(self, scene: Scene) -> dict[str, Any]:
        """What the pictures of a scene depend on beside their prompts and seeds."""
        return picture_facts(scene.model, scene.patch["digest"] if scene.patch else "", self.task.sampling, self.drawn)

    @cached_property
    def drawn(self) -> dict[str, Any]:
        """How this process draws, as results have it."""
        return record_of(self.pipe)
