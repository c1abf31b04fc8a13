"""Train every method that trains in bfloat16, and count what is left and what was lost beside its float32 patch.

    python benchmarks/half_precision.py                  # star, all methods: about an hour of one core
    python benchmarks/half_precision.py --methods esd --fit

The float32 patches are those in `benchmarks/patches/`. Both draw the same prompts from the same noise with the float32
weights, so that what differs is the training. Patches in bfloat16 are kept in the folder `--work`, where a training
that is stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from closed_form import RESULTS, measure

from erasers import Patch, get_eraser, list_erasers, load_pipeline
from erasers.eraser import eraser_class, options_for
from erasers.evaluation.run.states import kept_patch
from erasers.judges.oracle import Oracle
from erasers.training.loop import TrainedEraser
from erasers.worlds.shapes.prompts import concept_for, split_prompts

OUT = RESULTS / "shapes-half-precision.json"
PATCHES = Path(__file__).parent / "patches"
TRAINED = [name for name in list_erasers() if eraser_class(name).trains]


def fitted(method: str, word: str, work: Path) -> tuple[Patch, float]:
    """The bfloat16 patch and the seconds that it took, fitted unless it lies in the folder."""
    path, facts = work / f"{method}-{word}.safetensors", work / f"{method}-{word}.json"
    if not path.is_file():
        eraser, pipe = get_eraser(method, **options_for(method, "shapes")), load_pipeline("shapes", dtype="bfloat16")
        if not isinstance(eraser, TrainedEraser):
            raise SystemExit(f"{method} does not train")
        started, generator = time.process_time(), torch.Generator().manual_seed(0)
        half = work / f"{method}-{word}.checkpoint"
        patch = eraser.fit(pipe, concept_for(word), generator=generator, checkpoint=half)
        facts.write_text(json.dumps(round(time.process_time() - started, 1)))
        patch.save(path)
        half.unlink(missing_ok=True)
    return Patch.load(path), float(json.loads(facts.read_text()))


def whole(method: str, word: str) -> Patch:
    """The committed float32 patch.

    Raises:
        SystemExit: There is none with these options.
    """
    eraser = get_eraser(method, **options_for(method, "shapes"))
    patch = kept_patch([PATCHES], method, eraser, word, [concept_for(word)])
    if patch is None:
        raise SystemExit(
            f"expected benchmarks/patches/{method}-{word}.safetensors; run python benchmarks/patches.py first"
        )
    return patch


def within(row: Mapping[str, Any], beside: Mapping[str, Any]) -> bool:
    """Whether every share lies in the interval of the other row."""
    return all(other["low"] <= row[split]["value"] <= other["high"] for split, other in beside.items())


def compare(word: str, methods: Sequence[str], samples: int, work: Path) -> list[dict[str, Any]]:
    """A row a method: shares with Wilson intervals a split, of both patches."""
    pipe, judge, splits = load_pipeline("shapes"), Oracle(), split_prompts(word, samples)
    rows = []
    for method in methods:
        half, seconds = fitted(method, word, work)
        shares = {
            "bfloat16": measure(pipe, judge, splits, half),
            "float32": measure(pipe, judge, splits, whole(method, word)),
        }
        rows.append({"method": method, "concept": word, "splits": shares, "cpu_seconds": seconds})
        rows[-1]["within"] = within(shares["bfloat16"], shares["float32"])
        print(*table(rows[-1:])[2:], sep="\n", flush=True)
    return rows


def others(path: Path, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of other methods and concepts that a file has, measured alike."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": []}
    if any(known.get(key) != value for key, value in settings.items()):
        return []
    fresh = {(row["method"], row["concept"]) for row in rows}
    return [row for row in known["rows"] if (row["method"], row["concept"]) not in fresh]


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    splits = list(rows[0]["splits"]["float32"])
    lines = [
        f"| method | precision | {' | '.join(f'`{split}`' for split in splits)} |",
        "|---" * (len(splits) + 2) + "|",
    ]
    for row in rows:
        for kind in ("float32", "bfloat16"):
            cells = [
                f"{100 * c['value']:.1f} ({100 * c['low']:.1f}-{100 * c['high']:.1f})"
                for c in (row["splits"][kind][split] for split in splits)
            ]
            lines.append(f"| `{row['method']}` | {kind} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", default="star")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=TRAINED)
    parser.add_argument("--samples", type=int, default=40, help="pictures a split")
    parser.add_argument("--work", type=Path, default=Path("half-precision"), help="folder of the bfloat16 patches")
    parser.add_argument("--fit", action="store_true", help="fit the patches and measure nothing")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.fit:
        for method in options.methods:
            print(method, fitted(method, options.concept, options.work)[1], flush=True)
        return
    settings = {"samples": options.samples, "steps": 20, "guidance": 4.0}
    rows = compare(options.concept, options.methods, options.samples, options.work)
    rows = sorted([*others(options.out, settings, rows), *rows], key=lambda row: str(row["method"]))
    result = {**settings, "rows": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(*table(rows), sep="\n")


if __name__ == "__main__":
    main()
