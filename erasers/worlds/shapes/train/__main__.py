"""Command line of the training script.

`python -m erasers.worlds.shapes.train --out runs/shapes` runs every stage in order and puts the pipeline together in
`runs/shapes/model`; an interrupted run goes on where it stopped. `--stage unet --without star` retrains the denoiser on
a world without stars.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

STAGES = ("judge", "vae", "text", "unet", "assemble")
EXTRA_STAGES = ("clip",)
"""Run only when asked for: it needs the extra `[clip]`."""


def _rewrite(config: Path, **changes: str) -> None:
    """Change entries of a configuration, and drop the folder that it was loaded from."""
    entries = json.loads(config.read_text()) | changes
    entries.pop("_name_or_path", None)
    config.write_text(json.dumps(entries, indent=2) + "\n")


def assemble(out: Path) -> None:
    """Write `out/model`, a plain diffusers folder, and the reference denoisers in `out/reference`, all in fp16."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from erasers.worlds.shapes.train.unet import scheduler

    encoder = CLIPTextModel.from_pretrained(out / "text_encoder").half()
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(out / "vae").half(),
        text_encoder=encoder,
        tokenizer=CLIPTokenizer.from_pretrained(out / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(out / "unet").half(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    temporary = out / ".model"
    shutil.rmtree(temporary, ignore_errors=True)
    pipe.save_pretrained(temporary, safe_serialization=True)
    for component in ("unet", "vae"):
        _rewrite(temporary / component / "config.json")
    # diffusers loads fp16 weights as float32, transformers as fp16: the parts of a pipeline must agree.
    _rewrite(temporary / "text_encoder" / "config.json", dtype="float32")
    shutil.rmtree(out / "model", ignore_errors=True)
    temporary.rename(out / "model")
    for folder in sorted(out.glob("unet-without-*")):
        reference = out / "reference" / folder.name
        UNet2DConditionModel.from_pretrained(folder).half().save_pretrained(reference)
        _rewrite(reference / "config.json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m erasers.worlds.shapes.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/shapes"), help="folder of weights, logs and checkpoints")
    parser.add_argument(
        "--stage", choices=STAGES + EXTRA_STAGES, action="append", help="repeatable; default: all but clip"
    )
    parser.add_argument("--without", metavar="WORD", help="leave an object, colour or style out (stage unet only)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: torch's choice")
    options = parser.parse_args(arguments)
    stages = options.stage or STAGES
    if options.without and stages != ["unet"]:
        parser.error("--without needs --stage unet and no other stage")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    from erasers.worlds.shapes.train import clip, judge, text, unet, vae

    for stage in stages:
        if stage == "judge":
            judge.run(options.out, device, options.seed)
        elif stage == "vae":
            vae.run(options.out, device, options.seed)
        elif stage == "text":
            text.run(options.out, device, options.seed)
        elif stage == "unet":
            unet.run(options.out, device, options.seed, options.without)
        elif stage == "clip":
            clip.run(options.out, device, options.seed)
        else:
            assemble(options.out)


if __name__ == "__main__":
    main()
