"""Latents of pictures: their shape, and how they are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def latent_shape(pipe: Any) -> tuple[int, int, int]:
    """(channels, height, width) of the latents of a picture of the model's own size."""
    size = pipe.unet.config.sample_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return int(pipe.unet.config.in_channels), int(height), int(width)


@torch.no_grad()
def latents_of(pipe: Any, images: Sequence[Any]) -> torch.Tensor:
    """Scaled latents `[n, c, h, w]` of pictures in float32: the mean of the VAE's posterior, without its noise."""
    pixels = pipe.image_processor.preprocess(list(images)).to(pipe.vae.device, pipe.vae.dtype)
    scaled: torch.Tensor = pipe.vae.encode(pixels).latent_dist.mean.float() * pipe.vae.config.scaling_factor
    return scaled
