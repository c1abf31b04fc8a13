"""FLUX.2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import torch

from erasers.diffusion.adaptors.adaptor import EvenSigmas, Guides
from erasers.diffusion.adaptors.condition import Condition
from erasers.models.calls import default_of


class Flux2(EvenSigmas):
    """FLUX.2: states of three layers of Mistral 3, or of Qwen 3 in klein; four latents of the VAE are one place.

    Its dev model reads the guidance scale, klein is asked twice.
    """

    title = "FLUX.2"
    denoiser = "Flux2Transformer2DModel"

    def guides(self, pipe: Any) -> Guides:
        """See `Adaptor.guides`."""
        if not _is_klein(pipe):
            return "embedded"
        return "never" if pipe.config.is_distilled else "twice"

    def predict(
        self, pipe: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition, guidance: float
    ) -> torch.Tensor:
        """See `Adaptor.predict`."""
        transformer, states = pipe.transformer, condition.states.to(pipe.transformer.dtype)
        scales = torch.full((len(noisy),), guidance, device=noisy.device)
        output = transformer(
            hidden_states=noisy.flatten(2).transpose(1, 2).to(transformer.dtype),
            timestep=times.to(transformer.dtype) / 1000,
            guidance=None if _is_klein(pipe) else scales,
            encoder_hidden_states=states,
            txt_ids=pipe._prepare_text_ids(states).to(noisy.device),
            img_ids=pipe._prepare_latent_ids(noisy).to(noisy.device),
            return_dict=False,
        )[0]
        return torch.as_tensor(output).transpose(1, 2).reshape(noisy.shape)

    def shape(self, pipe: Any, size: int | None = None) -> tuple[int, ...]:
        """See `Adaptor.shape`."""
        side = pipe.default_sample_size if size is None else size // pipe.vae_scale_factor
        return int(pipe.transformer.config.in_channels), int(side) // 2, int(side) // 2

    def scaled(self, pipe: Any, mean: torch.Tensor) -> torch.Tensor:
        """See `Adaptor.scaled`: by the statistics that the VAE gathered of each channel."""
        norm, places = pipe.vae.bn, pipe._patchify_latents(mean)
        centre, variance = (value.view(1, -1, 1, 1).to(places) for value in (norm.running_mean, norm.running_var))
        return torch.as_tensor((places - centre) / (variance + pipe.vae.config.batch_norm_eps).sqrt())

    def shift(self, pipe: Any, shape: Sequence[int]) -> float | None:
        """See `Adaptor.shift`: it depends on the number of steps, too, here the pipeline's own."""
        return _shift(pipe, shape, default_of(pipe, "num_inference_steps"))

    def set_times(self, pipe: Any, scheduler: Any, steps: int, shape: Sequence[int]) -> None:
        """See `Adaptor.set_times`."""
        scheduler.set_timesteps(sigmas=numpy.linspace(1.0, 1 / steps, steps), mu=_shift(pipe, shape, steps))


def _is_klein(pipe: Any) -> bool:
    return "is_distilled" in pipe.config


def _shift(pipe: Any, shape: Sequence[int], steps: int) -> float | None:
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    dynamic = pipe.scheduler.config.get("use_dynamic_shifting", False)
    return float(compute_empirical_mu(shape[-2] * shape[-1], steps)) if dynamic else None
