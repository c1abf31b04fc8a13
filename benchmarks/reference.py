"""Measures the reference denoisers: `shapes` retrained without one concept, which is what erasure approximates.

    python benchmarks/reference.py

`benchmarks/reference/unet-without-<concept>` shares text encoder and autoencoder with the embedded model, as a Stable
Diffusion retrained on filtered pictures shares its frozen CLIP; from `python -m erasers.worlds.shapes.train
--stage unet --without <concept>`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from closed_form import measure, show
from diffusers import UNet2DConditionModel

from erasers.judges.oracle import Oracle
from erasers.pipeline import load_pipeline
from erasers.worlds.shapes.prompts import split_prompts

FOLDER = Path(__file__).parent / "reference"
RESULT = Path(__file__).parent / "results" / "shapes-reference.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100, help="pictures a split")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    judge, rows = Oracle(), []
    for folder in sorted(FOLDER.glob("unet-without-*")):
        word = folder.name.removeprefix("unet-without-")
        pipe = load_pipeline("shapes")
        pipe.unet = UNet2DConditionModel.from_pretrained(folder)
        cells = measure(pipe, judge, split_prompts(word, options.samples), None)
        rows.append({"concept": word, "method": f"retrained without {word}", "splits": cells})
        show(rows[-1])
    RESULT.write_text(
        json.dumps({"samples": options.samples, "steps": 20, "guidance": 4.0, "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
