"""Stage 3: the pipeline as a plain diffusers folder, and the retrained denoisers beside it, all in fp16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection

from erasers.worlds.shapes_sd3.train.latents import load_vae
from erasers.worlds.shapes_sd3.train.text import ENCODERS, load_tokenizer
from erasers.worlds.shapes_sd3.train.transformer import scheduler


def run(out: Path) -> None:
    """Write `out/model`, and `out/reference/<name>` of every `out/transformer-without-<word>`."""
    encoders = {name: CLIPTextModelWithProjection.from_pretrained(out / name).half() for name in ENCODERS}
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel.from_pretrained(out / "transformer").half(),
        scheduler=scheduler(),
        vae=load_vae().half(),
        tokenizer=load_tokenizer(),
        tokenizer_2=load_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
        **encoders,
    )
    temporary = out / ".model"
    shutil.rmtree(temporary, ignore_errors=True)
    pipe.save_pretrained(temporary, safe_serialization=True)
    for component in ("transformer", "vae"):
        _rewrite(temporary / component / "config.json")
    for name in ENCODERS:
        # diffusers loads fp16 weights as float32, transformers as fp16: the parts of a pipeline must agree.
        _rewrite(temporary / name / "config.json", dtype="float32")
    shutil.rmtree(out / "model", ignore_errors=True)
    temporary.rename(out / "model")
    for folder in sorted(out.glob("transformer-without-*")):
        reference = out / "reference" / folder.name
        SD3Transformer2DModel.from_pretrained(folder).half().save_pretrained(reference)
        _rewrite(reference / "config.json")


def _rewrite(config: Path, **changes: str) -> None:
    """Change entries of a configuration, and drop the folder that it was loaded from."""
    entries = json.loads(config.read_text()) | changes
    entries.pop("_name_or_path", None)
    config.write_text(json.dumps(entries, indent=2) + "\n")
