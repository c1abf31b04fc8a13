"""The last stage: the pipeline as a plain diffusers folder, and the retrained denoisers beside it, all in fp16."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from erasers.worlds.shapes.train.unet import scheduler
from erasers.worlds.training.saving import save_pipeline, save_references


def run(out: Path) -> None:
    """Write `out/model`, and `out/reference/<name>` of every `out/unet-without-<word>`."""
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
    save_pipeline(pipe, out / "model")
    save_references(out, UNet2DConditionModel, "unet")
