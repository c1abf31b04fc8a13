"""FLUX.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy
import torch

from erasers.diffusion.adaptors.adaptor import Adaptor, Guides, moved_by
from erasers.diffusion.adaptors.condition import Condition


class Flux(Adaptor):
    """FLUX.1: states of T5, the pooled vector of CLIP; latents in packs of 2 x 2; the guidance scale is an input."""

    title = "FLUX.1"
    denoiser = "FluxTransformer2DModel"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")

    def guides(self, pipe: Any) -> Guides:
        """See `Adaptor.guides`: the schnell model is not guided."""
        return "embedded" if pipe.transformer.config.guidance_embeds else "never"

    def encode(self, pipe: Any, texts: Sequence[str], clip_skip: int | None = None) -> Condition:
        """See `Adaptor.encode`."""
        states, pooled, _ = pipe.encode_prompt(prompt=list(texts), prompt_2=None, device=pipe._execution_device)
        return Condition(states, pooled)

    def predict(
        self, pipe: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition, guidance: float
    ) -> torch.Tensor:
        """See `Adaptor.predict`."""
        transformer, states, pooled = pipe.transformer, condition.states, condition.pooled
        height, width = noisy.shape[-2:]
        places = {"device": noisy.device, "dtype": transformer.dtype}
        embeds = transformer.config.guidance_embeds
        output = transformer(
            hidden_states=packed(noisy).to(transformer.dtype),
            timestep=times.to(transformer.dtype) / 1000,
            guidance=torch.full((len(noisy),), guidance, device=noisy.device) if embeds else None,
            pooled_projections=None if pooled is None else pooled.to(transformer.dtype),
            encoder_hidden_states=states.to(transformer.dtype),
            txt_ids=torch.zeros(states.shape[1], 3, **places),
            img_ids=grid_ids(height // 2, width // 2).to(**places),
            return_dict=False,
        )[0]
        return unpacked(output, height, width)

    def shape(self, pipe: Any, size: int | None = None) -> tuple[int, ...]:
        """See `Adaptor.shape`."""
        side = pipe.default_sample_size if size is None else size // pipe.vae_scale_factor
        side = 2 * (int(side) // 2)
        return int(pipe.transformer.config.in_channels) // 4, side, side

    def shift(self, pipe: Any, shape: Sequence[int]) -> float | None:
        """See `Adaptor.shift`."""
        config = pipe.scheduler.config
        dynamic = config.get("use_dynamic_shifting", False)
        return moved_by(config, shape[-2] // 2 * (shape[-1] // 2)) if dynamic else None

    def set_times(self, pipe: Any, scheduler: Any, steps: int, shape: Sequence[int]) -> None:
        """See `Adaptor.set_times`."""
        scheduler.set_timesteps(sigmas=even_sigmas(steps), mu=self.shift(pipe, shape))


def even_sigmas(steps: int) -> numpy.ndarray:
    """Shares of noise from 1 down to 1 / steps, which the scheduler then shifts."""
    return numpy.linspace(1.0, 1 / steps, steps)


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
