"""Many concepts at once: what is erased and kept, seconds and bytes, by the number of concepts that one patch erases.

    python benchmarks/many.py                                  # the closed forms and gates of `METHODS`
    python benchmarks/many.py --methods uce,dp --counts 1,6     # these anew; rows of other methods stay as they are
    python benchmarks/many.py --figure                         # the figure from the numbers that are there

The concepts are the first N of `WORDS`; what they become, their neighbours and the captions that are kept name none of
them. Prompts of erased concepts are split evenly between these; kept ones ask for what is left of the world.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from erasers import Concept, Patch, get_eraser, load_pipeline, worlds
from erasers.asks import Ask
from erasers.concept import names
from erasers.eraser import options_for
from erasers.evaluation.drawing import generate
from erasers.evaluation.scores.metrics import Score, score
from erasers.files.atomic import write_atomically
from erasers.judges import Judge, get_judge
from erasers.worlds import World

RESULT = Path(__file__).parent / "results" / "shapes-many.json"
WORDS = (
    *("star", "zorblat", "red", "heart", "blue", "velkin", "arrow"),
    *("cross", "purple", "crescent", "triangle", "umbrane", "yellow", "ring"),
)
"""In the order in which they go; circle, square, hexagon, green, orange, krostic and the stamp stay."""
INSTEAD = {"object": "circle", "attribute": "green"}
"""What a concept becomes whose own anchor goes, too."""
METHODS = "uce,rece,realera,dp,oce,leace,speed,mace,itd-means,semantic_surgery,adavd,safree"
UNEDITED = "unedited"


def concepts_of(world: World, words: Sequence[str]) -> list[Concept]:
    """Concepts that do not contradict each other."""
    whole = [world.concept(word) for word in words]
    return [
        replace(
            concept,
            anchor=INSTEAD.get(concept.kind, "") if concept.anchor in words else concept.anchor,
            neighbours=tuple(word for word in concept.neighbours if word not in words),
            preserve=tuple(text for text in concept.preserve if not any(names(text, word) for word in words)),
        )
        for concept in whole
    ]


def prompts_of(world: World, concepts: Sequence[Concept], samples: int) -> tuple[list[Ask], list[Ask]]:
    """Prompts that ask for the concepts, each as often as another, and some that ask for what is kept."""
    each = -(-samples // len(concepts))
    table = world.prompts(concepts, each)
    erased = [ask for splits in table.values() for ask in splits["explicit"]]
    kept = [ask for splits in table.values() for split in ("neighbour", "unrelated") for ask in splits.get(split, ())]
    return erased, kept[:: max(1, len(kept) // samples)][:samples]


def shares(pipe: Any, world: World, judge: Judge, patch: Patch | None, sets: Sequence[Sequence[Ask]]) -> list[Score]:
    """Of each set of prompts the share of pictures that show what was asked."""
    results = []
    with patch.applied(pipe) if patch else nullcontext():
        for asks in sets:
            settings = {"steps": world.steps, "guidance": world.guidance, "batch": 25, "tokens": world.tokens}
            images = [image for batch in generate(pipe, asks, **settings) for image in batch]
            share = score(judge.judge(images, asks))
            if share is None:
                raise ValueError("expected verdicts of the judge, got none")
            results.append(share)
    return results


def row(pipe: Any, world: World, judge: Judge, method: str, count: int, samples: int) -> dict[str, Any]:
    """What one patch of so many concepts does."""
    concepts = concepts_of(world, WORDS[:count])
    patch, cost = None, {}
    if method != UNEDITED:
        eraser, started = get_eraser(method, **options_for(method, world.name)), time.process_time()
        patch = eraser.fit(pipe, concepts, generator=torch.Generator().manual_seed(0), progress=False)
        cost = {"seconds": round(time.process_time() - started, 3), "bytes": patch.nbytes}
    shown, kept = shares(pipe, world, judge, patch, prompts_of(world, concepts, samples))
    return {"method": method, "count": count, "shown": shown.to_json(), "kept": kept.to_json(), **cost}


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Curves of every method over the number of concepts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True).flat
    titles = {
        "shown": "erased concepts still drawn",
        "kept": "kept ones drawn",
        "seconds": "seconds of one core",
        "bytes": "KiB of the patch",
    }
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    for axis, (field, title) in zip(axes, titles.items(), strict=True):
        for number, method in enumerate(methods):
            points = [row for row in rows if row["method"] == method and field in row]
            if not points:
                continue
            values = [row[field] for row in points]
            scale = 1024 if field == "bytes" else 1
            heights = [value["value"] if isinstance(value, dict) else value / scale for value in values]
            counts, style = [row["count"] for row in points], "k:" if method == UNEDITED else "o-"
            color = {} if method == UNEDITED else {"color": f"C{number % 10}"}
            axis.plot(counts, heights, style, label=method, markersize=4, **color)
            if isinstance(values[0], dict):
                low, high = ([value[end] for value in values] for end in ("low", "high"))
                axis.fill_between(counts, low, high, alpha=0.08, **color)
        axis.set_title(title, fontsize=10)
        if field in ("shown", "kept"):
            axis.set_ylim(-0.03, 1.03)
        else:
            axis.set_yscale("log")
    for axis in figure.axes[2:]:
        axis.set_xlabel("concepts in one patch")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    write_atomically(path, lambda file: figure.savefig(file, dpi=90, format="png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=METHODS.split(","))
    parser.add_argument(
        "--counts", type=lambda text: [int(part) for part in text.split(",")], default=[1, 3, 6, 10, 14]
    )
    parser.add_argument("--samples", type=int, default=60, help="pictures of erased concepts, and of kept ones")
    parser.add_argument("--out", type=Path, default=RESULT, help="a JSON file; the figure goes beside it")
    parser.add_argument("--figure", action="store_true", help="draw the figure from the numbers that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    there = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {"rows": []}
    rows = there["rows"]
    if not options.figure:
        world = worlds.get("shapes")
        pipe, judge = load_pipeline(world.name), get_judge(world.judge)
        for method in [UNEDITED, *options.methods]:
            for count in options.counts:
                rows = [old for old in rows if (old["method"], old["count"]) != (method, count)]
                rows.append(row(pipe, world, judge, method, count, options.samples))
                print(json.dumps(rows[-1]), flush=True)
                rows.sort(key=lambda own: (own["method"] != UNEDITED, own["method"], own["count"]))
                text = json.dumps(
                    {
                        "measurement": "many",
                        "model": world.name,
                        "words": WORDS,
                        "samples": options.samples,
                        "rows": rows,
                    },
                    indent=1,
                )
                write_atomically(options.out, lambda file, text=text: file.write_text(text + "\n", encoding="utf-8"))
    draw(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
