"""What `erase recommend` knows: `erasers/evaluation/recommend/measured.json`, from the committed results.

python benchmarks/measured.py            # write it
python benchmarks/measured.py --check    # exit 1 if it is not what the results say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erasers import worlds
from erasers.evaluation.recommend import measured
from erasers.evaluation.recommend.measured import ALL, Figures, Many, Measured, Share, Table
from erasers.files.atomic import write_atomically

ROOT = Path(__file__).parent.parent
TASKS = ("shapes-standard@2", "shapes-sd3-standard@1")
COSTS = {"shapes-standard@2": "shapes-cost.json"}
"""Where seconds were measured on an idle machine; else they are those of the fits of the task."""
MANY = {"shapes-standard@2": "shapes-many.json"}
"""What was measured of several concepts at once on the same model."""

TUNED = {"shapes-standard@2": ["star"], "shapes-sd3-standard@1": ["star"]}
"""Concepts on which settings of some methods were chosen."""


def table(folder: Path, costs: Mapping[str, Any], several: Sequence[Mapping[str, Any]]) -> Table:
    """The methods of a task, by name, and those that were measured with several concepts at once."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    rows = [row(result, costs) for result in results if result["row"]["kind"] == "method"]
    task = results[0]["task"]
    world = worlds.get(task["model"])
    kinds = {concept: world.concept(concept).kind for case in task["cases"] for concept in case}
    index = json.loads((Path(world.folder) / "model_index.json").read_text(encoding="utf-8"))
    denoiser = index.get("unet") or index["transformer"]
    return Table(
        folder.name, task["model"], denoiser[1], kinds, TUNED[folder.name], rows, [many(own) for own in several]
    )


def many(own: Mapping[str, Any]) -> Many:
    """A row of `many.py`."""
    erasure, kept = share(own["shown"], turned=True), share(own["kept"])
    if erasure is None or kept is None:
        raise ValueError(f"expected shares of {own['method']}, got none")
    return Many(own["method"], own["count"], erasure, kept, own["bytes"], own["seconds"])


def row(result: Mapping[str, Any], costs: Mapping[str, Any]) -> Measured:
    """What a result says of its method."""
    name, scores, patches = (
        result["row"]["name"],
        result["scores"],
        [case["patch"] for case in result["cases"].values()],
    )
    parts = {ALL: scores["all"], **scores["cases"]}
    seconds = [patch["edit_seconds"] for patch in patches if patch["edit_seconds"] is not None]
    mean = sum(seconds) / len(seconds) if seconds else None
    return Measured(
        name,
        {case: figures(own["pillars"], own["details"]) for case, own in parts.items()},
        sum(patch["bytes"] for patch in patches) / len(patches),
        costs[name]["cpu_seconds"] if name in costs else mean,
    )


def figures(pillars: Mapping[str, Any], details: Mapping[str, Any]) -> Figures:
    """The figures of a concept, or of all."""
    shares = {name: share(pillars.get(name)) for name in ("erasure", "neighbours", "specificity", "utility")}
    attacks = {key.partition("/")[2]: value for key, value in details.items() if key.startswith(("attack/", "probe/"))}
    worst = max(attacks, key=lambda name: (attacks[name]["value"], name), default="")
    probes = share(attacks[worst], turned=True) if attacks else None
    return Figures(**shares, texts=share(pillars.get("robustness")), probes=probes, worst=worst)


def share(estimate: Mapping[str, Any] | None, *, turned: bool = False) -> Share | None:
    """An estimate of a result, or 1 minus it."""
    if not estimate or estimate.get("value") is None:
        return None
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    return Share(1 - value, 1 - high, 1 - low) if turned else Share(value, low, high)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file is not current")
    options = parser.parse_args(arguments)
    results = root / "benchmarks" / "results"
    known = []
    for task in TASKS:
        costs = json.loads((results / COSTS[task]).read_text(encoding="utf-8"))["methods"] if task in COSTS else {}
        several = json.loads((results / MANY[task]).read_text(encoding="utf-8"))["rows"] if task in MANY else []
        known.append(table(results / task, costs, [own for own in several if "bytes" in own]))
    file, content = root / "erasers" / "evaluation" / "recommend" / measured.FILE, measured.to_json(known)
    current = file.is_file() and file.read_text(encoding="utf-8") == content
    if options.check:
        if not current:
            print(f"{measured.FILE} is not what the results say; run python benchmarks/measured.py")
        return int(not current)
    write_atomically(file, lambda path: path.write_text(content, encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
