"""Measures the reference denoisers: an embedded model retrained without one concept, which erasure approximates.

    python benchmarks/reference.py
    python benchmarks/reference.py --model shapes-sd3

`benchmarks/reference/<denoiser>-without-<concept>` shares text encoders and autoencoder with the embedded model, as a
Stable Diffusion retrained on filtered pictures shares its frozen CLIP. They are from the training of the world, such as
`python -m erasers.worlds.shapes.train --stage unet --without <concept>`. That of `shapes-sd3` without a style hears the
style's words as words that tell nothing of a picture (`SAID` of its training), for its pooled text would be of a kind
that the denoiser never met.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from closed_form import measure, show

from erasers import worlds
from erasers.diffusion.adaptors.table import denoisers_of
from erasers.evaluation.run.states import reference
from erasers.judges.oracle import Oracle
from erasers.pipeline import load_pipeline
from erasers.worlds.shapes.prompts import split_prompts

FOLDER = Path(__file__).parent / "reference"
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=worlds.list(), default=worlds.DEFAULT, help="the world")
    parser.add_argument("--samples", type=int, default=100, help="pictures a split")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    world, pipe, judge, rows = worlds.get(options.model), load_pipeline(options.model), Oracle(), []
    [denoiser] = denoisers_of(pipe)
    for folder in sorted(FOLDER.glob(f"{denoiser}-without-*")):
        word = folder.name.removeprefix(f"{denoiser}-without-")
        with reference(pipe, folder):
            cells = measure(pipe, judge, split_prompts(word, options.samples), None, world.tokens)
        rows.append({"concept": word, "method": f"retrained without {word}", "splits": cells})
        show(rows[-1])
    facts = {"samples": options.samples, "steps": world.steps, "guidance": world.guidance, "rows": rows}
    (RESULTS / f"{world.name}-reference.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
