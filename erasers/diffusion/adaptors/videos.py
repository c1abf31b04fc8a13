"""Latents of videos."""

from __future__ import annotations

from typing import Any

import torch


def standardised(pipe: Any, mean: torch.Tensor) -> torch.Tensor:
    """Latents of videos `[n, c, frames, h, w]` by the mean and spread that their autoencoder knows of each channel."""
    config = pipe.vae.config
    centre, spread = (
        torch.tensor(values, device=mean.device, dtype=mean.dtype).view(1, -1, 1, 1, 1)
        for values in (config.latents_mean, config.latents_std)
    )
    return (mean - centre) / spread
