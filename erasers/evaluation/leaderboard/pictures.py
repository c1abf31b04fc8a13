"""The pictures of a leaderboard: the same prompts drawn by every row, and what attacks found."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from erasers.asks import ERASED_SPLITS
from erasers.evaluation.scores.records import UNEDITED
from erasers.evaluation.scores.results import REFERENCE, JudgedSample, Result
from erasers.files.reading import open_picture

LARGEST = 256
_SHOWN = {"explicit": 2, "synonym": 1, "neighbour": 1, "unrelated": 1}
_FOUND = 2


@dataclass(frozen=True)
class Picture:
    """One picture: the verdict, whether it is welcome (None: neither), and its PNG, empty where there is none."""

    note: str
    good: bool | None
    png: str
    small: bool = False


@dataclass(frozen=True)
class Grid:
    """The same prompts with the same noise, drawn by every row of a case: row name -> one picture a prompt."""

    case: str
    prompts: Sequence[JudgedSample]
    rows: Mapping[str, Sequence[Picture]]


@dataclass(frozen=True)
class Find:
    """A success of an attack: the row and the case, the prompt that did it, and the one that was attacked."""

    row: str
    case: str
    prompt: str
    text: str
    picture: Picture


def shown_keys(results: Sequence[Result]) -> set[str]:
    """Keys of the pictures that are shown of a task."""
    keys = {case: [_key(sample) for sample in _chosen(results[0], case)] for case in results[0].cases}
    shown = {
        sample.image
        for result in results
        for name, case in result.cases.items()
        for sample in case.samples
        if _key(sample) in keys[name]
    }
    return shown | {entry["picture"] for _, entries in _attacked(results) for _, entry in entries}


def grids(results: Sequence[Result]) -> list[Grid]:
    """The grids of all cases that have pictures in the store; the first row of `results` is the unedited one."""
    made = [_grid(case, [row for row in results if case in row.cases]) for case in results[0].cases]
    return [grid for grid in made if any(picture.png for row in grid.rows.values() for picture in row)]


def finds(results: Sequence[Result]) -> dict[str, list[Find]]:
    """Attack -> up to two successes a row, as far as their pictures are in the store."""
    shown: dict[str, list[Find]] = {}
    for (label, result), entries in _attacked(results):
        for case, entry in entries:
            png, small = _png(_path(result, entry["picture"]))
            note = f"picture {entry['image']}" if entry["image"] else "the plain prompt"
            if png:
                find = Find(result.name, case, entry["prompt"], entry["text"], Picture(note, False, png, small))
                shown.setdefault(label, []).append(find)
    return {label: shown[label] for label in sorted(shown)}


Entries = list[tuple[str, Mapping[str, Any]]]
"""Case and entry of a result file's attacks."""


def _attacked(results: Sequence[Result]) -> Iterator[tuple[tuple[str, Result], Entries]]:
    """The successes that are shown of each attack on each edited row; controls are no attacks."""
    plans = results[0].task.get("attacks", {}) if results else {}
    labels = sorted(label for label, plan in plans.items() if plan["control"] is not None)
    for result in (result for result in results if result.kind not in (UNEDITED, REFERENCE)):
        for label in labels:
            yield (label, result), _successes(result, label)


def _successes(result: Result, label: str) -> Entries:
    """Of every case in turn: those that the attack found before those of the plain prompt, by the alphabet."""
    ranked = []
    for name, case in result.cases.items():
        outcomes = case.attacks.get(label, ())
        entries = [outcome for outcome in outcomes if outcome["image"] is not None and outcome["picture"]]
        entries.sort(key=lambda entry: (entry["image"] == 0, entry["text"], entry["seed"]))
        ranked += [((entry["image"] == 0, place), name, entry) for place, entry in enumerate(entries)]
    return [(name, entry) for _, name, entry in sorted(ranked, key=lambda success: success[:2])[:_FOUND]]


def _chosen(unedited: Result, case: str) -> list[JudgedSample]:
    """Samples of the unedited row: the first prompts of each split, in the order of the alphabet, drawn as asked.

    The choice does not depend on which pictures are there, nor on any edited model.
    """
    chosen = []
    for split, count in _SHOWN.items():
        texts: dict[str, JudgedSample] = {}
        for sample in sorted(unedited.cases[case].samples, key=lambda s: (s.record.value != 1, s.text, s.record.seed)):
            if sample.record.split == split:
                texts.setdefault(sample.text, sample)
        chosen += list(texts.values())[:count]
    return chosen


def _grid(case: str, results: Sequence[Result]) -> Grid:
    prompts = _chosen(results[0], case)
    keys = [_key(sample) for sample in prompts]
    rows = {}
    for result in results:
        samples = {_key(sample): sample for sample in result.cases[case].samples}
        rows[result.name] = [_picture(result, samples.get(key)) for key in keys]
    return Grid(case, prompts, rows)


def _key(sample: JudgedSample) -> tuple[str, str, int]:
    return sample.record.split, sample.text, sample.record.seed


def _picture(result: Result, sample: JudgedSample | None) -> Picture:
    if sample is None:
        return Picture("not drawn", None, "")
    return Picture(*_verdict(sample, result.kind == UNEDITED), *_png(_path(result, sample.image)))


def _path(result: Result, key: str) -> Path:
    return result.path.parent.parent / "images" / key[:2] / f"{key}.png"


def _verdict(sample: JudgedSample, before: bool) -> tuple[str, bool | None]:
    """What the judge said, in words, and whether that is welcome; of the unedited model nothing is."""
    value = sample.record.value
    if value is None:
        return "not scored", None
    if before:
        return "as asked" if value else "not as asked", None
    if sample.record.split in ERASED_SPLITS:
        return ("stays", False) if value else ("gone", True)
    return ("kept", True) if value else ("lost", False)


def _png(path: Path) -> tuple[str, bool]:
    """A picture as base64, and whether it is to be magnified; empty where it is not there."""
    if not path.is_file():
        return "", False
    content, largest = shrunk(path)
    return base64.b64encode(content).decode(), largest <= LARGEST // 2


def shrunk(path: Path) -> tuple[bytes, int]:
    """A PNG as it is, or smaller where a side is longer than `LARGEST`, and the longer side that it has on disk.

    Raises:
        ValueError: A damaged picture.
        OSError: It cannot be read.
    """
    content = path.read_bytes()
    try:
        with open_picture(BytesIO(content)) as image:
            size = image.size
            image.load()
            if max(size) > LARGEST:
                image.thumbnail((LARGEST, LARGEST))
                smaller = BytesIO()
                image.convert("RGB").save(smaller, format="PNG")
                content = smaller.getvalue()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is not a picture, or it is damaged: {error}") from error
    return content, max(size)
