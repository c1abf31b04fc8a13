"""Erases concepts of `shapes` with the closed-form methods, and counts what is left and what was lost.

    python benchmarks/closed_form.py                          # RECE, 200 pictures a split: about a quarter of an hour
    python benchmarks/closed_form.py --methods uce,uce-v1,uce-v2,rece-official --samples 50

One row a method and concept, the unedited model first; every row draws the same prompts from the same noise. `bare`
rows give the method the concept's name, anchor and neighbours alone, without the captions to preserve.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from erasers import Concept, Patch, get_eraser
from erasers.evaluation.drawing import generate
from erasers.evaluation.scores.metrics import score
from erasers.judges.oracle import Oracle
from erasers.pipeline import load_pipeline
from erasers.worlds.shapes.prompts import Prompt, concept_for, split_prompts

CONCEPTS = "star,heart,red,zorblat"
RESULTS = Path(__file__).parent / "results"
Cell = Mapping[str, Any]


def measure(
    pipe: Any, judge: Oracle, splits: Mapping[str, Sequence[Prompt]], patch: Patch | None, tokens: int | None = None
) -> dict[str, Cell]:
    """Share of positive verdicts a split, with its Wilson interval."""
    cells = {}
    with patch.applied(pipe) if patch else contextlib.nullcontext():
        for split, prompts in splits.items():
            verdicts = []
            done = 0
            for images in generate(pipe, prompts, steps=20, guidance=4.0, batch=25, tokens=tokens):
                verdicts += judge.judge(images, prompts[done : done + len(images)])
                done += len(images)
            share = score(verdicts)
            if share is not None:
                cells[split] = share.to_json()
    return cells


def run(words: Sequence[str], methods: Sequence[str], samples: int, *, bare: bool) -> list[dict[str, Any]]:
    """All rows: concept, method, scores a split, seconds of the fit and bytes of the patch."""
    pipe, judge = load_pipeline("shapes"), Oracle()
    rows = []
    for word in words:
        splits = split_prompts(word, samples)
        concept: Concept = concept_for(word)
        if bare:
            concept = replace(concept, preserve=())
        rows.append({"concept": word, "method": "unedited", "splits": measure(pipe, judge, splits, None)})
        show(rows[-1])
        for method in methods:
            started = time.perf_counter()
            patch = get_eraser(method).fit(pipe, concept)
            seconds = round(time.perf_counter() - started, 3)
            cells = measure(pipe, judge, splits, patch)
            label = f"{method} (bare)" if bare else method
            rows.append({"concept": word, "method": label, "splits": cells, "seconds": seconds, "bytes": patch.nbytes})
            show(rows[-1])
    return rows


def show(row: Mapping[str, Any]) -> None:
    """Print one row as Markdown."""
    cells = [
        f"{s}: {100 * c['value']:.1f} ({100 * c['low']:.1f}–{100 * c['high']:.1f})" for s, c in row["splits"].items()
    ]
    print(f"| {row['concept']} | {row['method']} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", default=CONCEPTS, help="words of the world, with commas")
    parser.add_argument("--methods", default="rece", help="methods or presets, with commas")
    parser.add_argument("--samples", type=int, default=200, help="pictures a split")
    parser.add_argument("--bare", action="store_true", help="withhold the captions to preserve")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "shapes-closed-form.json")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = run(options.concepts.split(","), options.methods.split(","), options.samples, bare=options.bare)
    options.out.parent.mkdir(exist_ok=True)
    result = {"samples": options.samples, "steps": 20, "guidance": 4.0, "rows": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
