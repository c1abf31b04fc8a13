"""Drawing pictures of a row again: what no file can say of itself."""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

from erasers.evaluation.run.drawn import pixel_hash, record_of
from erasers.evaluation.run.stage import Stage
from erasers.evaluation.run.states import Row, Scene, kept_patch
from erasers.evaluation.run.units import draw, units
from erasers.evaluation.run.verifying import eraser_of
from erasers.evaluation.scores.records import UNEDITED
from erasers.evaluation.scores.results import REDRAWN, REFERENCE, Result
from erasers.evaluation.tasks.task import Sample, Task
from erasers.files.atomic import write_atomically
from erasers.files.hashing import file_sha256
from erasers.judges import Verdict
from erasers.patch import Patch
from erasers.progress import Advance

SHARE, NEAR = 0.02, 0.05
"""At most this share of verdicts may differ; a probability may differ by so much. Other devices and versions draw the
last bits of a picture differently, and few verdicts hang on them."""


@dataclass(frozen=True)
class Redrawn:
    """What drawing again came to.

    Args:
        file: sha256 of the result file.
        samples: Pictures that were drawn and judged again.
        agree: Verdicts that are the same, with nearly the same probability.
        compared: Pictures whose hash the file records.
        same: Those with the same pixels.
        seed: Of the choice of pictures.
        cases: That they are of.
        drawn: How they were drawn now.
    """

    file: str
    samples: int
    agree: int
    compared: int
    same: int
    seed: int
    cases: tuple[str, ...]
    drawn: dict[str, Any]

    @property
    def holds(self) -> bool:
        """Whether the verdicts of the file are those of its model."""
        return self.samples - self.agree <= ceil(SHARE * self.samples)

    def write(self, path: Path) -> None:
        """Keep it beside a result file, for the leaderboard."""
        target = path.parent / REDRAWN / path.name
        target.parent.mkdir(exist_ok=True)
        text = json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"
        write_atomically(target, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def redraw(
    row: Result,
    stage: Stage,
    count: int,
    patches: Sequence[Patch] = (),
    *,
    advance: Advance = lambda count: None,
) -> Redrawn:
    """Draw some pictures of a row again, chosen by chance, in the batches that they were drawn in, and judge them.

    Args:
        row: A row that was verified.
        stage: Its task with no rows, the unedited pipeline, the judge, and a folder in which nothing is written.
        count: Pictures.
        patches: Of the row. Those of methods that train are also looked for where the task keeps them.
        advance: Called with the number of pictures that were drawn.

    Raises:
        ValueError: No patch of the row, one of another row, or another model or judge than the row's.
    """
    if (stage.model, stage.judge.fingerprint.digest) != (row.shared["model"], row.shared["judge"].get("fingerprint")):
        raise ValueError(f"expected the model and the judge of {row.path}, got others")
    scenes = _scenes(row, stage, patches)
    cases = tuple(sorted(case for scene in scenes for case in scene.cases if case in row.data["cases"]))
    samples = [(case, sample) for case in cases for sample in row.data["cases"][case]["samples"]]
    seed = secrets.randbelow(1 << 31)
    chosen = random.Random(seed).sample(samples, min(count, len(samples)))
    agree = compared = same = 0
    for scene in scenes:
        wanted = [sample for case, sample in chosen if case in scene.cases]
        for sample, verdict, pixels in _again(stage, scene, wanted):
            agree += _agree(sample, verdict)
            compared += "pixels" in sample
            same += sample.get("pixels") == pixels
            advance(1)
    return Redrawn(file_sha256(row.path), len(chosen), agree, compared, same, seed, cases, record_of(stage.pipe))


def _again(
    stage: Stage, scene: Scene, samples: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], Verdict, str]]:
    """Samples, each with the verdict on its picture and the hash of that, both made anew."""
    wanted: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for sample in samples:
        wanted.setdefault((sample["text"], sample["seed"]), []).append(sample)
    with scene.enter():
        for unit in units(stage, scene):
            places = [wanted.get((shared[0].text, shared[0].seed), []) for _, shared in unit.pictures]
            if not any(places):
                continue
            for image, sharing in zip(draw(stage, unit), places, strict=True):
                asks = [Sample(sample["split"], sample["text"], sample["seed"], sample["wants"]) for sample in sharing]
                for sample, verdict in zip(sharing, stage.judge.judge([image] * len(asks), asks), strict=True):
                    yield sample, verdict, pixel_hash(image)


def _scenes(row: Result, stage: Stage, patches: Sequence[Patch]) -> list[Scene]:
    """The states of the model that pictures of a row can be drawn in here."""
    if row.kind == UNEDITED:
        return [Scene(Row(UNEDITED, UNEDITED), tuple(stage.draws), nullcontext, stage.model)]
    if row.kind == REFERENCE:
        here = (case for case in row.data["cases"] if case not in stage.lacking)
        return [scene for case in here if (scene := stage.scene(Row(REFERENCE, REFERENCE), case)) is not None]
    digests = {case: facts["patch"]["digest"] for case, facts in row.data["cases"].items()}
    if foreign := [patch for patch in patches if patch.digest not in digests.values()]:
        raise ValueError(f"expected patches of {row.path}, got one of digest {foreign[0].digest}: {foreign[0]!r}")
    scenes = []
    for case, digest in digests.items():
        known = [*patches, *_kept(row, stage.task, case)]
        patch = next((patch for patch in known if patch.digest == digest), None)
        if patch and (scene := stage.scene(Row(row.name, "patch", patch.meta["method"], patch=patch), case)):
            scenes.append(scene)
    if not scenes:
        raise ValueError(f"expected a patch of {row.path} to draw with, got none; give --patch FILE")
    return scenes


def _kept(row: Result, task: Task, case: str) -> list[Patch]:
    """The patch of a method that trains, where the task keeps it."""
    eraser = eraser_of(row, task) if row.kind == "method" else None
    patch = eraser and kept_patch(
        task.places(task.patches), row.data["row"]["method"], eraser, case, task.concepts(case)
    )
    return [patch] if patch else []


def _agree(sample: Mapping[str, Any], verdict: Verdict) -> bool:
    """Whether a verdict is the same, with nearly the same probability."""
    before, now = sample.get("probability"), verdict.probability
    near = before is None or now is None or abs(before - now) <= NEAR
    return bool(sample["value"] == verdict.value and near)
