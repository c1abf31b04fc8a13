"""Made-up results of a benchmark in a store: verdicts by chance, scores as the library computes them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from erasers.evaluation.pillars import Scheme, measure
from erasers.evaluation.profile import ERASED_SPLITS, SPLITS
from erasers.evaluation.records import Record

PILLARS = ("erasure", "neighbours", "specificity")
ROWS = {"unedited": (1.0, 1.0), "retrained": (0.03, 0.97), "uce": (0.1, 0.9), "rece": (0.11, 0.89), "noise": (0.0, 0.1)}
"""Row -> how often it draws the erased concept, and what it should keep."""
KINDS = {"unedited": "unedited", "retrained": "reference"}


def write_results(
    store: Path,
    *,
    name: str = "shapes-made-up",
    rows: Mapping[str, tuple[float, float]] = ROWS,
    cases: Sequence[str] = ("star", "zorblat"),
    per_split: int = 12,
    pillars: Sequence[str] = PILLARS,
    unscored: Sequence[str] = (),
    adult: bool = False,
    pictures: bool = True,
) -> list[Path]:
    """Write a result file for every row, and pictures of one colour a row; splits in `unscored` have no verdicts."""
    task = {"name": name, "version": 1, "model": "shapes", "cases": [[case] for case in cases], "adult": adult}
    task |= {"scheme": {"pillars": list(pillars)}, "judge": "oracle/shapes"}
    samples = {
        row: {case: _samples(row, case, shares, per_split, unscored) for case in cases} for row, shares in rows.items()
    }
    folder = store / f"{name}@1"
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        data = {"format": 1, "task": task, "library": "0.1.0", "model": "f" * 64, "judge": {"name": "oracle/shapes"}}
        kind = KINDS.get(row, "method")
        data["row"] = {"name": row, "kind": kind, "method": row if kind == "method" else None, "options": {}}
        data["cases"] = {case: {"patch": _patch(kind), "samples": samples[row][case]} for case in cases}
        data["scores"] = _scores(samples[row], samples["unedited"], Scheme(pillars=tuple(pillars)))
        (folder / f"{row}.json").write_text(json.dumps(data, sort_keys=True), encoding="utf-8")
    if pictures:
        write_pictures(store, samples)
    return sorted(folder.glob("*.json"))


def write_pictures(
    store: Path, samples: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], size: int = 32
) -> None:
    """Put a picture of one colour into the store for every sample."""
    for row, cases in samples.items():
        colour = tuple(hashlib.sha256(row.encode()).digest()[:3])
        for sample in (sample for some in cases.values() for sample in some):
            path = store / "images" / sample["image"][:2] / f"{sample['image']}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (size, size), colour).save(path)


def _patch(kind: str) -> dict[str, Any] | None:
    return {"digest": "d" * 64, "bytes": 12345, "edit_seconds": 0.25} if kind == "method" else None


def _samples(
    row: str, case: str, shares: tuple[float, float], count: int, unscored: Sequence[str]
) -> list[dict[str, Any]]:
    samples = []
    for split in SPLITS:
        chance = random.Random(f"{row}/{case}/{split}")
        for seed in range(count):
            text = f"a {split} picture {seed:02d} of {case if split in ERASED_SPLITS else 'something'}"
            value = None if split in unscored else int(chance.random() < shares[split not in ERASED_SPLITS])
            key = hashlib.sha256(f"{row}/{case}/{text}/{seed}".encode()).hexdigest()
            samples.append({"split": split, "text": text, "seed": seed, "wants": {}, "image": key})
            samples[-1] |= {"value": value, "probability": value}
    return samples


def _scores(mine: Mapping[str, Any], unedited: Mapping[str, Any], scheme: Scheme) -> dict[str, Any]:
    def score(cases: Sequence[str]) -> dict[str, Any]:
        return measure(_records(mine, cases), _records(unedited, cases), scheme).to_json()

    return {"cases": {case: score([case]) for case in mine}, "all": score(list(mine))}


def _records(samples: Mapping[str, Any], cases: Sequence[str]) -> list[Record]:
    return [
        Record(sample["split"], f"{case}/{sample['text']}", sample["seed"], sample["value"])
        for case in cases
        for sample in samples[case]
    ]
