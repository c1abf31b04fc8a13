"""The last stage: the pipeline as a plain diffusers folder, and the retrained denoisers beside it, all in fp16."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection

from erasers.worlds.shapes.paths import MODEL_DIR
from erasers.worlds.shapes_sd3.train.text import ENCODERS, load_tokenizer
from erasers.worlds.shapes_sd3.train.transformer import scheduler
from erasers.worlds.training.saving import save_pipeline, save_references


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
    save_pipeline(pipe, out / "model")
    save_references(out, SD3Transformer2DModel, "transformer")


def load_vae() -> AutoencoderKL:
    """The autoencoder of `shapes` with the shift that this pipeline asks for: none, its latents lie around zero."""
    vae = AutoencoderKL.from_pretrained(MODEL_DIR / "vae").eval()
    vae.register_to_config(shift_factor=0.0)
    return vae
