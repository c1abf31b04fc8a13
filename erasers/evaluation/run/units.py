"""Pictures that are drawn together.

What is drawn with a picture may turn its last bits, so it is always drawn in the same batch, whatever is missing and
whoever draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from erasers.evaluation.drawing import generate
from erasers.evaluation.run.stage import Stage
from erasers.evaluation.run.states import Scene
from erasers.evaluation.tasks.task import Sample

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Unit:
    """Pictures that are drawn together: keys, and the samples that each picture is for."""

    scene: Scene
    pictures: Sequence[tuple[str, Sequence[Sample]]]


def units(stage: Stage, scene: Scene) -> Iterator[Unit]:
    """The pictures of a scene in batches; a picture that several samples share is in the first of theirs."""
    pictures: dict[str, list[Sample]] = {}
    for case in scene.cases:
        for sample in stage.draws[case]:
            pictures.setdefault(stage.picture_key(scene, sample), []).append(sample)
    batch, items = stage.task.sampling.batch, list(pictures.items())
    return (Unit(scene, items[start : start + batch]) for start in range(0, len(items), batch))


def draw(stage: Stage, unit: Unit) -> list[Image.Image]:
    """The pictures of a unit, drawn together; the model is in its state."""
    asks, sampling = [samples[0] for _, samples in unit.pictures], asdict(stage.task.sampling)
    return next(iter(generate(stage.pipe, asks, **sampling | {"batch": len(asks)})))
