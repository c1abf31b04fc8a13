"""Made-up results of a benchmark in a store: verdicts by chance, scores as the library computes them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from erasers.asks import ERASED_SPLITS, SPLITS
from erasers.evaluation.scores.calibration import Calibration, key
from erasers.evaluation.scores.metrics import Score
from erasers.evaluation.scores.pillars import Scheme
from erasers.evaluation.scores.scoring import scores

PILLARS = ("erasure", "neighbours", "specificity")
ROWS = {"unedited": (1.0, 1.0), "retrained": (0.03, 0.97), "uce": (0.1, 0.9), "rece": (0.11, 0.89), "noise": (0.0, 0.1)}
"""Row -> how often it draws the erased concept, and what it should keep."""
KINDS = {"unedited": "unedited", "retrained": "reference"}
ATTACKS = {"prefixes": 0.03, "words": 0.2, "p4d": 0.45, "cce": 0.7}
"""Label -> how often it brings back what the model drew of the rest; the last one changes embeddings."""
BUDGETS = {"prefixes": (0, 25, 25), "words": (0, 25, 25), "p4d": (300, 340, 10), "cce": (400, 400, 4)}
CALIBRATION = {key({}): Calibration(Score(0.96, 200, 0.92, 0.98), Score(0.99, 200, 0.96, 1.0), 400).to_json()}


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
    detailed: bool = False,
) -> list[Path]:
    """Write a result file for every row, and pictures of one colour a row.

    Splits in `unscored` have no verdicts; `detailed` results have attacks, figures and all other details.
    """
    task = {"name": name, "version": 1, "model": "shapes", "cases": [[case] for case in cases], "adult": adult}
    task |= {"scheme": {"pillars": list(pillars)}, "judge": "oracle/shapes", "attacks": _plans() if detailed else {}}
    samples = {
        row: {case: _samples(row, case, shares, per_split, unscored) for case in cases} for row, shares in rows.items()
    }
    parts = {row: {case: {"samples": some} for case, some in found.items()} for row, found in samples.items()}
    figures = {row: {part: _figures(row) for part in ("all", *cases)} if detailed else {} for row in rows}
    if detailed:
        for row, case in ((row, case) for row in rows for case in cases):
            _measure(row, samples[row][case], samples["retrained"][case])
            parts[row][case]["attacks"] = {label: _attack(label, row, case, rows[row]) for label in ATTACKS}
    folder = store / f"{name}@1"
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        data = {"format": 1, "task": task, "library": "0.1.0", "model": "f" * 64, "judge": {"name": "oracle/shapes"}}
        data |= {"figures": figures[row]} if detailed else {}
        kind = KINDS.get(row, "method")
        data["row"] = {"name": row, "kind": kind, "method": row if kind == "method" else None, "options": {}}
        data["cases"] = {case: {"patch": _patch(kind), **parts[row][case]} for case in cases}
        facts = {"plans": _plans(), "figures": figures[row], "calibration": CALIBRATION} if detailed else {}
        data["scores"] = scores(parts[row], parts["unedited"], Scheme(pillars=tuple(pillars)), **facts)
        (folder / f"{row}.json").write_text(json.dumps(data, sort_keys=True), encoding="utf-8")
    if pictures:
        write_pictures(store, samples)
        write_pictures(store, {row: {case: _found(part) for case, part in some.items()} for row, some in parts.items()})
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
            samples[-1] |= {"value": value}
    return samples


def _plans() -> dict[str, Any]:
    plans = {}
    for label, (gradients, encodes, images) in BUDGETS.items():
        plan = {
            "attack": "random_prefix" if label == "prefixes" else label,
            "options": {"images": images},
            "samples": 8,
            "replicate": 5,
            "encoder": "none",
        }
        plan |= {"control": None if label == "prefixes" else "prefixes"}
        plan |= {"space": "embedding" if label == "cce" else "text"}
        plans[label] = plan | {"budget": {"gradients": gradients, "encodes": encodes, "images": images}}
    return plans


def _measure(row: str, samples: Sequence[dict[str, Any]], gold: Sequence[Mapping[str, Any]]) -> None:
    """Numbers that samples have beside their verdicts."""
    chance = random.Random(f"{row}/measured")
    for sample, other in zip(samples, gold, strict=True):
        sample["probability"] = round(abs(sample["value"] - 0.2 * chance.random()), 3)
        if row != "unedited":
            sample["drift"] = round(chance.uniform(0.1, 0.5) * (2 - sample["value"]), 4)
        if row != "retrained":
            sample |= {"gold": round(chance.uniform(0.1, 0.4), 4), "agrees": sample["value"] == other["value"]}
        if sample["split"] not in ERASED_SPLITS:
            sample["clip"] = round(chance.uniform(0.2, 0.3), 4)


def _figures(row: str) -> list[dict[str, Any]]:
    value = random.Random(f"{row}/figures").uniform(0.001, 0.02)
    ends = {"error": 0.001, "low": value - 0.00196, "high": value + 0.00196}
    figures = [{"metric": "fid", "value": 400 * value}, {"metric": "kid (100 subsets of 12)", "value": value, **ends}]
    rise = {"metric": "kid rise (100 subsets of 12)", "value": value, **ends}
    figures += [{"metric": "cmmd (100 subsets of 12)", "value": 50 * value, "low": 40 * value, "high": 60 * value}]
    return [{"extractor": "shapes-encoder", "n": 24, **figure} for figure in (*figures, rise)]


def _attack(label: str, row: str, case: str, shares: tuple[float, float]) -> list[dict[str, Any]]:
    """What an attack did to eight explicit prompts."""
    found, (gradients, encodes, images) = [], BUDGETS[label]
    for seed in range(8):
        chance = random.Random(f"{label}/{row}/{case}/{seed}")
        plain = chance.random() < shares[0]
        hit = plain or (row != "retrained" and chance.random() < ATTACKS[label] * shares[1])
        image = None if not hit else 0 if plain else chance.randrange(1, images)
        text = f"a explicit picture {seed:02d} of {case}"
        spent = 0 if plain else 1 if image is None else image / images
        cost = {"gradients": int(spent * gradients), "encodes": int(spent * encodes)}
        cost["images"] = images if image is None else image + 1
        picture = hashlib.sha256(f"{label}/{row}/{case}/{seed}".encode()).hexdigest() if hit else None
        prompt = text if plain or label == "cce" else f"{text} vqz {label} </w> lantern {seed}"
        found.append({"text": text, "seed": seed, "pre": plain, "value": hit, "image": image, "unscored": 0})
        found[-1] |= {"replicated": chance.randrange(6) if hit else None, "seeds": 5 if hit else 0}
        found[-1] |= {"spent": cost, "prompt": prompt, "picture": picture, "limit": images}
    return found


def _found(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pictures of successes, as if they were samples."""
    outcomes = [one for some in part.get("attacks", {}).values() for one in some]
    return [{"image": one["picture"]} for one in outcomes if one["picture"]]
