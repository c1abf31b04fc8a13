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
    pixels = pipe.image_processor.preprocess(list(images)).to(pipe.vae.device, pipe.vae.dtype)
    return adaptor_of(pipe).scaled(pipe, pipe.vae.encode(pixels).latent_dist.mean.float())
