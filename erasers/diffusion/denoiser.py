"""The denoiser: its call, and how far what it predicts is from what a perfect one would."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn import functional

from erasers.diffusion.batches import Summands, mean_in_parts
from erasers.diffusion.conditions import Condition
from erasers.diffusion.noise import noised, target_of


def predict(pipe: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition) -> torch.Tensor:
    """What the denoiser predicts in float32, with gradients to what it is called with.

    Args:
        pipe: A Stable Diffusion 1, 2 or XL pipeline.
        noisy: Latents `[n, c, h, w]` of unit variance, as `noised` makes them.
        times: t `[n]`.
        condition: Of n prompts, or of one for all.

    Returns:
        `[n, c, h, w]`; `target_of` says what of.
    """
    unet, more = pipe.unet, {}
    if condition.pooled is not None:
        pooled = condition.pooled.to(unet.dtype).expand(len(noisy), -1)
        more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": _time_ids(pipe, noisy)}
    states = condition.states.to(unet.dtype).expand(len(noisy), -1, -1)
    output = unet(noisy.to(unet.dtype), times.to(noisy.device), encoder_hidden_states=states, **more).sample
    return torch.as_tensor(output).float()


def denoising_loss(
    pipe: Any, latents: torch.Tensor, times: torch.Tensor, noise: torch.Tensor, states: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of the prediction from that of a perfect denoiser.

    Args:
        pipe: A Stable Diffusion 1 or 2 pipeline.
        latents: z_0 `[n, c, h, w]`, scaled.
        times: t `[n]`.
        noise: `[n, c, h, w]`.
        states: Text states `[n or 1, tokens, d]`.
    """
    target = target_of(pipe, latents, times, noise)
    predicted = predict(pipe, noised(pipe, latents, times, noise), times, Condition(states))
    return functional.mse_loss(predicted, target.float())


def denoising_in_parts(
    pipe: Any, latents: torch.Tensor, times: torch.Tensor, noise: torch.Tensor, states: torch.Tensor
) -> Summands:
    """`denoising_loss`, in summands of what may go through the denoiser together."""

    def error(rows: slice) -> torch.Tensor:
        own = states if len(states) == 1 else states[rows]
        return denoising_loss(pipe, latents[rows], times[rows], noise[rows], own)

    return mean_in_parts(len(latents), error)


def _time_ids(pipe: Any, noisy: torch.Tensor) -> torch.Tensor:
    """SDXL's sizes `[n, 6]`: a picture of the model's own size, not cropped."""
    side = int(noisy.shape[-1] * pipe.vae_scale_factor), int(noisy.shape[-2] * pipe.vae_scale_factor)
    width = getattr(getattr(pipe, "text_encoder_2", None), "config", None)
    dim = None if width is None else int(width.projection_dim)
    more = {"dtype": pipe.unet.dtype, "text_encoder_projection_dim": dim}
    if "aesthetic_score" in inspect.signature(pipe._get_add_time_ids).parameters:
        # Pipelines that draw from pictures return a pair, with the ids of the negative prompt behind.
        called = inspect.signature(type(pipe).__call__).parameters
        more |= {name: called[name].default for name in ("aesthetic_score", "negative_aesthetic_score")}
        more |= {"negative_original_size": side[::-1], "negative_target_size": side[::-1]}
        more |= {"negative_crops_coords_top_left": (0, 0)}
    ids = pipe._get_add_time_ids(side[::-1], (0, 0), side[::-1], **more)
    ids = ids[0] if isinstance(ids, tuple) else ids
    return torch.as_tensor(ids).to(noisy.device).expand(len(noisy), -1)
