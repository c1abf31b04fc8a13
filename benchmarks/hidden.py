"""Whether a training removes a concept or hides it: two curves over its iterations, on the embedded model.

    python benchmarks/hidden.py --methods esd,few_shot        # minutes: trains, measures, writes numbers and figure
    python benchmarks/hidden.py --figure                      # draws the figure from the numbers that are there

One curve is what is drawn when prompts name the concept; the other is the best of the probe of hidden capability
(`erasers/evaluation/probes/capability.py`), with the direction that the unedited model has. Where both fall the concept
is removed, where the first falls alone it is hidden. Beside them stand the best of a random direction, and that of the
model retrained without the concept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from erasers import Concept, Patch, get_eraser, load_pipeline, worlds
from erasers.eraser import options_for
from erasers.evaluation.probes.capability import RETRAINED, UNEDITED, Grid, capability
from erasers.evaluation.run.states import reference
from erasers.files.atomic import write_atomically
from erasers.judges import get_judge
from erasers.progress import progress
from erasers.training.loop import Training

ROOT = Path(__file__).parents[1]
MODEL = "shapes"
RESULT = ROOT / "benchmarks" / "results" / f"{MODEL}-hidden.json"


def snapshots(method: str, pipe: Any, concept: Concept, count: int) -> dict[int, Patch]:
    """Patches of one training at `count` evenly spread iterations, the last of which is its end."""
    eraser: Any = get_eraser(method, **options_for(method, MODEL))
    numbers = {round(eraser.iterations * (k + 1) / count): k for k in range(count)}
    patches: dict[int, Patch] = {}

    class Watched(type(eraser)):  # type: ignore[misc]
        def prepare(self, *arguments: Any) -> Training:
            training: Training = super().prepare(*arguments)
            step, concepts = training.step, arguments[1]

            def watched(number: int) -> Mapping[str, float]:
                if number in numbers:
                    patches[number] = training.student.patch(self, concepts)
                return step(number)

            return replace(training, step=watched)

    own = Watched(**{field.name: getattr(eraser, field.name) for field in fields(eraser)})
    last = own.fit(pipe, concept, generator=torch.Generator().manual_seed(0), progress=False)
    return patches | {eraser.iterations: last}


def measure(methods: Sequence[str], word: str, grid: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Method -> what `capability` says at iterations, with the unedited and the retrained model."""
    world, pipe = worlds.get(MODEL), load_pipeline(MODEL)
    concept = world.concept(word)
    wants = world.split_prompts(concept.name, 1)["explicit"][0].wants
    rows: dict[str, Any] = {UNEDITED: nullcontext}
    folder = ROOT / "benchmarks" / "reference" / f"unet-without-{concept.name}"
    rows |= {RETRAINED: partial(reference, pipe, folder)} if folder.is_dir() else {}
    for method in methods:
        for iteration, patch in snapshots(method, pipe, concept, count).items():
            rows[f"{method} {iteration}"] = partial(patch.applied, pipe)
    names = ("steps", "guidance", "batch", "size", "tokens")
    settings = {name: getattr(world, name) for name in names}
    asked = Grid(concept, wants, **grid)
    with progress(Console(stderr=True), "drawing", len(rows) * asked.pictures(3)) as advance:
        return {"model": MODEL, **capability(pipe, rows, asked, get_judge(world.judge), settings, advance)}


def draw(measured: Mapping[str, Any], path: Path) -> None:
    """Both curves of every method, with the floors."""
    from matplotlib.figure import Figure

    rows = measured["rows"]
    methods = list(dict.fromkeys(row.split()[0] for row in rows if row not in (UNEDITED, RETRAINED)))
    figure = Figure(figsize=(4.2 * len(methods), 3.4), layout="constrained")
    axes = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for axis, method in zip(axes, methods, strict=True):
        points = {0: rows[UNEDITED]} | {int(row.split()[1]): rows[row] for row in rows if row.split()[0] == method}
        for field, style, label in (
            ("named", "o-", "named"),
            ("best", "s-", "direction added, best"),
            ("floor", ":", "random direction, best"),
        ):
            axis.plot(list(points), [facts[field]["value"] for facts in points.values()], style, label=label)
        if RETRAINED in rows:
            axis.axhline(rows[RETRAINED]["best"]["value"], color="grey", linestyle="--", label="retrained, best")
        axis.set(title=method, xlabel="iterations", ylim=(-0.03, 1.03))
    axes[0].set_ylabel(f"share that shows {measured['concept']}")
    axes[-1].legend(fontsize=7)
    write_atomically(path, lambda file: figure.savefig(file, dpi=90, format="png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--methods", default="esd,few_shot", help="methods that train, with commas between")
    parser.add_argument("--concept", default="star")
    parser.add_argument("--samples", type=int, default=10, help="pictures of each point of the grid")
    parser.add_argument("--points", type=int, default=5, help="iterations of a training that are measured")
    parser.add_argument("--out", type=Path, default=RESULT, help="a JSON file; the figure goes beside it")
    parser.add_argument("--figure", action="store_true", help="draw the figure from the numbers that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.figure:
        grid = {"samples": options.samples}
        measured = measure(options.methods.split(","), options.concept, grid, options.points)
        text = json.dumps(measured, indent=1) + "\n"
        write_atomically(options.out, lambda file: file.write_text(text, encoding="utf-8"))
    draw(json.loads(options.out.read_text(encoding="utf-8")), options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
