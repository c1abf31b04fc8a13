"""Rows of a task, and the states that the model is drawn in for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from erasers.concept import Concept
from erasers.eraser import Eraser
from erasers.evaluation.store import key_of
from erasers.evaluation.tasks.task import Task
from erasers.files.hashing import module_hash
from erasers.models.loading import load_component, refuse_code_and_pickles, weights_variant
from erasers.patch import Patch
from erasers.patch.build import concept_meta


@dataclass(frozen=True)
class Row:
    """A row of the table: what is done to the model.

    Args:
        name: Of the row and of its file.
        kind: `unedited`, `reference`, `method` or `patch`.
        method: Name of the method or preset; that of the patch.
        eraser: Fits the patch of each case.
        patch: The only patch, for the case of its concepts.
    """

    name: str
    kind: str
    method: str | None = None
    eraser: Eraser | None = None
    patch: Patch | None = None

    def to_json(self) -> dict[str, Any]:
        """The row as results have it."""
        options = self.eraser.config() if self.eraser else dict(self.patch.meta["config"]) if self.patch else {}
        return {"name": self.name, "kind": self.kind, "method": self.method, "options": options}


@dataclass(frozen=True)
class Scene:
    """A model in one state, and the cases that are drawn with it.

    Args:
        row: Of this row.
        cases: Their names.
        enter: The pipeline is in the state inside of what this gives.
        model: Fingerprint of its weights, patches aside.
        patch: Digest, bytes and seconds of the patch.
    """

    row: Row
    cases: Sequence[str]
    enter: Callable[[], AbstractContextManager[Any]]
    model: str
    patch: Mapping[str, Any] | None = None


def fingerprint(pipe: Any) -> str:
    """sha256 of the weights of all components of a pipeline, and of its class."""
    modules = {name: module for name, module in pipe.components.items() if isinstance(module, torch.nn.Module)}
    return key_of({"class": type(pipe).__name__, **{name: module_hash(module) for name, module in modules.items()}})


@contextmanager
def reference(pipe: Any, folder: Path) -> Iterator[Any]:
    """Inside, the pipeline has the denoiser of that folder."""
    name = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
    before = getattr(pipe, name)
    refuse_code_and_pickles(folder, ["."])
    other = load_component(type(before), folder, before.dtype, weights_variant(folder, None))
    setattr(pipe, name, other.to(before.device).eval())
    try:
        yield pipe
    finally:
        setattr(pipe, name, before)


def case_of(task: Task, patch: Patch) -> str:
    """The case of a task whose concepts a patch erases.

    Raises:
        ValueError: There is none.
    """
    erased = sorted(str(concept.get("name")) for concept in patch.meta["concepts"])
    for case in task.named_cases:
        if sorted(concept.name for concept in task.concepts(case)) == erased:
            return case
    raise ValueError(f"expected a patch for one of {', '.join(task.named_cases)}, got one for {', '.join(erased)}")


def kept_patch(
    folders: Sequence[Path], method: str | None, eraser: Eraser, case: str, concepts: Sequence[Concept]
) -> Patch | None:
    """The patch that a folder has of a method that trains, fitted with the same options for the same concepts.

    Args:
        folders: Where it may be; the first that has it counts.
        method: Its name, or that of the preset.
        eraser: The method with its options.
        case: Name of the case.
        concepts: Its concepts.
    """
    if not eraser.trains:
        return None
    usual = {field.name: field.default for field in fields(eraser) if field.default is not MISSING}
    wanted = usual, eraser.config(), [concept_meta(concept) for concept in concepts]
    usual, options, erased = json.loads(json.dumps(wanted))
    for folder in folders:
        path = folder / f"{method}-{case}.safetensors"
        if path.is_file():
            patch = Patch.load(path)
            # An option that came later has no say in a patch that was fitted before, as long as it has its default.
            if usual | patch.meta["config"] == options and patch.meta["concepts"] == erased:
                return patch
    return None


def find_reference(folders: Sequence[Path]) -> Path | None:
    """The first of some folders that has a denoiser; None where none has."""
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)
