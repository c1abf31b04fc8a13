"""Latents of pictures: their shape, and how they are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

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
