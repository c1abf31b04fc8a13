"""The denoiser: its call, and how far what it predicts is from what a perfect one would."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.batches import Summands, mean_in_parts
from erasers.diffusion.noise import noised, target_of


def predict(
    pipe: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition, guidance: float = 1.0
) -> torch.Tensor:
    """What the denoiser predicts in float32, with gradients to what it is called with.

    Args:
        pipe: A pipeline of a family in `erasers.diffusion.adaptors.table`.
        noisy: Latents `[n, c, ...]` of unit variance, as `noised` makes them.
        times: t `[n]`.
        condition: Of n prompts, or of one for all.
        guidance: For denoisers that read a guidance scale; they are trained at 1.

    Returns:
        `[n, c, ...]`; `target_of` says what of.
    """
    output = adaptor_of(pipe).predict(pipe, noisy, times.to(noisy.device), condition.expand(len(noisy)), guidance)
    return output.float()


def denoising_loss(
    pipe: Any, latents: torch.Tensor, times: torch.Tensor, noise: torch.Tensor, condition: Condition
) -> torch.Tensor:
    """Mean squared error of the prediction from that of a perfect denoiser.

    Args:
        pipe: As for `predict`.
        latents: z_0 `[n, c, ...]`, scaled.
        times: t `[n]`.
        noise: `[n, c, ...]`.
        condition: Of n prompts, or of one for all.
    """
    target = target_of(pipe, latents, times, noise)
    predicted = predict(pipe, noised(pipe, latents, times, noise), times, condition)
    return functional.mse_loss(predicted, target.float())


def denoising_in_parts(
    pipe: Any, latents: torch.Tensor, times: torch.Tensor, noise: torch.Tensor, condition: Condition
) -> Summands:
    """`denoising_loss`, in summands of what may go through the denoiser together."""

    def error(rows: slice) -> torch.Tensor:
        own = condition if len(condition.states) == 1 else condition.part(rows)
        return denoising_loss(pipe, latents[rows], times[rows], noise[rows], own)

    return mean_in_parts(len(latents), error)
