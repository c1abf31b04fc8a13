"""Latents in packs of 2 x 2, as FLUX.1 and its relatives read them."""

from __future__ import annotations

from typing import Any

import torch

from erasers.diffusion.adaptors.adaptor import EvenSigmas


class Packed(EvenSigmas):
    """Families whose denoiser reads a sequence of squares of 2 x 2 latents."""

    def shape(self, pipe: Any, size: int | None = None) -> tuple[int, ...]:
        """See `Adaptor.shape`."""
        side = pipe.default_sample_size if size is None else size // pipe.vae_scale_factor
        side = 2 * (int(side) // 2)
        return int(pipe.transformer.config.in_channels) // 4, side, side

    def handed(self, latents: torch.Tensor) -> torch.Tensor:
        """See `Adaptor.handed`."""
        return packed(latents)


def packed(latents: torch.Tensor) -> torch.Tensor:
    """Latents `[n, c, h, w]` as a sequence `[n, h/2 w/2, 4 c]` of squares of 2 x 2."""
    rows, channels, height, width = latents.shape
    squares = latents.view(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(rows, height // 2 * (width // 2), channels * 4)


def unpacked(sequence: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """What `packed` was made of, `[n, c, h, w]`."""
    rows, _, channels = sequence.shape
    squares = sequence.view(rows, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(rows, channels // 4, height, width)


def grid_ids(height: int, width: int) -> torch.Tensor:
    """(0, row, column) of every square of a picture `[h w, 3]`."""
    ids = torch.zeros(height, width, 3)
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)[None, :]
    return ids.reshape(-1, 3)
