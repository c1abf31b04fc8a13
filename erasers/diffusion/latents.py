"""Latents of pictures: their shape, and how they are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from erasers.diffusion.adaptors.table import adaptor_of


def latent_shape(pipe: Any, size: int | None = None) -> tuple[int, ...]:
    """(channels, ..., height, width) of the latents of a picture of so many pixels; None: the model's own size."""
    return adaptor_of(pipe).shape(pipe, size)


@torch.no_grad()
def latents_of(pipe: Any, images: Sequence[Any]) -> torch.Tensor:
    """Scaled latents `[n, c, ...]` of pictures in float32: the mean of the VAE's posterior, without its noise."""
    processor = pipe.image_processor if hasattr(pipe, "image_processor") else pipe.video_processor
    pixels = processor.preprocess(list(images)).to(pipe.vae.device, pipe.vae.dtype)
    # Autoencoders of videos read `[n, 3, frames, h, w]`.
    encoded = pipe.vae.encode(pixels[:, :, None] if "temperal_downsample" in pipe.vae.config else pixels)
    mean = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latent
    return adaptor_of(pipe).scaled(pipe, mean.float())


@torch.no_grad()
def pictures_of(pipe: Any, latents: torch.Tensor, batch: int = 8) -> list[Image.Image]:
    """What a pipeline of Stable Diffusion 1, 2 or XL makes of scaled latents `[n, c, h, w]`."""
    vae, pictures, dtype = pipe.vae, list[Image.Image](), pipe.vae.dtype
    # That of SDXL overflows in float16, and says so.
    precise = torch.float32 if dtype == torch.float16 and vae.config.get("force_upcast") else dtype
    if precise != dtype:
        vae.to(precise)
    try:
        for rows in latents.split(batch):
            pixels = vae.decode(rows.to(precise) / vae.config.scaling_factor, return_dict=False)[0]
            pictures += pipe.image_processor.postprocess(pixels, output_type="pil")
    finally:
        if precise != dtype:
            vae.to(dtype)
    return pictures
