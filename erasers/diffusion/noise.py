"""Noise: how much of it there is at which time, put into latents and taken out of them.

Times are steps of the pipeline's own schedule; latents have unit variance. What depends on the kind of schedule or of
prediction stands here and nowhere else.
"""

from __future__ import annotations

from typing import Any

import torch

from erasers.diffusion.draws import gaussian, picks


def noised(pipe: Any, latents: torch.Tensor, times: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) noise `[n, c, h, w]`, at times `[n]`.

    That is what the denoiser reads under any scheduler of this noise schedule: those that count in sigmas scale theirs
    (`scale_model_input`) to the same before they call it.
    """
    signal, spread = _scales(pipe, times, latents)
    return signal * latents + spread * noise


def target_of(pipe: Any, latents: torch.Tensor, times: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What a perfect denoiser predicts `[n, c, h, w]` of latents with that noise: the noise, or the velocity.

    v = sqrt(a_t) noise - sqrt(1 - a_t) z_0 (Salimans and Ho, arXiv 2202.00512, appendix D). Arguments as for `noised`.
    """
    if not predicts_velocity(pipe):
        return noise
    signal, spread = _scales(pipe, times, latents)
    return signal * noise - spread * latents


def clean(pipe: Any, noisy: torch.Tensor, times: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """x0 `[n, c, h, w]` that goes with a prediction: (x_t - sqrt(1 - a_t) eps) / sqrt(a_t), or the same of v."""
    signal, spread = _scales(pipe, times, noisy)
    if predicts_velocity(pipe):
        return signal * noisy - spread * predicted
    return (noisy - spread * predicted) / signal


def step_back(
    pipe: Any, noisy: torch.Tensor, times: torch.Tensor, before: torch.Tensor, predicted: torch.Tensor
) -> torch.Tensor:
    """One step of DDIM (eta 0; Song et al., arXiv 2010.02502, eq. 12) from `times` to the earlier `before` `[n]`.

    A negative `before` stands for the end, where there is no noise.
    """
    signal, spread = _scales(pipe, times, noisy)
    picture = clean(pipe, noisy, times, predicted)
    noise = (noisy - signal * picture) / spread
    end = before.view(-1, 1, 1, 1).to(noisy.device) < 0
    signal, spread = _scales(pipe, before.clamp(min=0), noisy)
    return torch.where(end, 1.0, signal) * picture + torch.where(end, 0.0, spread) * noise


def predicts_velocity(pipe: Any) -> bool:
    """Whether the denoiser predicts v, not the noise."""
    return bool(pipe.scheduler.config.get("prediction_type", "epsilon") == "v_prediction")


def total_times(pipe: Any) -> int:
    """How many times there are: 0, almost without noise, to the one before, almost nothing else."""
    return int(pipe.scheduler.config.num_train_timesteps)


def random_times(pipe: Any, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` times, drawn uniformly, on the CPU."""
    return picks(total_times(pipe), count, generator)


def middle_times(pipe: Any, count: int) -> list[int]:
    """The middles of `count` equal parts of all times: 10, 30, ..., 990 for 50 of 1000."""
    return [(2 * number + 1) * total_times(pipe) // (2 * count) for number in range(count)]


def time_grid(pipe: Any, steps: int) -> list[int]:
    """`steps` times from noisy to clean, evenly spread: 981, 961, ..., 1 for 50 of 1000."""
    total = total_times(pipe)
    if not 1 <= steps <= total:
        raise ValueError(f"expected steps from 1 to {total}, got {steps}")
    return [min(total - 1, number * (total // steps) + 1) for number in reversed(range(steps))]


def noise_again(
    pipe: Any, pictures: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x_t, t, what a perfect denoiser predicts) of pictures x_0 `[n, c, h, w]`, at random times with fresh noise."""
    times = random_times(pipe, len(pictures), generator).to(pictures.device)
    noise = gaussian(pictures, generator)
    return noised(pipe, pictures, times, noise), times, target_of(pipe, pictures, times, noise)


def _scales(pipe: Any, times: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sqrt(a_t) and sqrt(1 - a_t) as `[n, 1, 1, 1]`."""
    alphas = pipe.scheduler.alphas_cumprod.to(like.device)[times.to(like.device)].view(-1, 1, 1, 1)
    return alphas.sqrt().to(like.dtype), (1 - alphas).sqrt().to(like.dtype)
