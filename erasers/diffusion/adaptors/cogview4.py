"""CogView4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import torch

from erasers.diffusion.adaptors.adaptor import Adaptor, in_groups, shift_factor
from erasers.diffusion.adaptors.condition import Condition, cat
from erasers.models.calls import handed_on


class CogView4(Adaptor):
    """CogView4: states of GLM, in sixteens of tokens; sizes beside them; times from before they are shifted."""

    title = "CogView4"
    denoiser = "CogView4Transformer2DModel"

    def encode(self, pipe: Any, texts: Sequence[str], clip_skip: int | None = None) -> Condition:
        """See `Adaptor.encode`: one by one, for the text encoder, too, reads the padding that prompts share."""
        alone = [pipe.encode_prompt([text], **handed_on(pipe))[0] for text in texts]
        return cat(*(Condition(states, mask=torch.ones(states.shape[:2], dtype=torch.long)) for states in alone))

    def predict(
        self, pipe: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition, guidance: float
    ) -> torch.Tensor:
        """See `Adaptor.predict`: it has no mask, so that prompts of different length are asked apart."""
        states, mask, said = condition.states, condition.mask, self._unshifted(pipe, times, noisy.shape[1:])
        if mask is None:
            return _ask(pipe, noisy, said, states)

        def ask(length: int, index: torch.Tensor) -> torch.Tensor:
            return _ask(
                pipe,
                noisy[index.to(noisy.device)],
                said[index.to(said.device)],
                states[index.to(states.device), :length],
            )

        return in_groups(mask.sum(dim=1), ask)

    def shift(self, pipe: Any, shape: Sequence[int]) -> float | None:
        """See `Adaptor.shift`: it grows with the square root of the number of tokens."""
        config, patch = pipe.scheduler.config, int(pipe.transformer.config.patch_size)
        if not config.get("use_dynamic_shifting", False):
            return None
        sides = (shape[-2] * shape[-1] // patch**2 / config.get("base_image_seq_len", 256)) ** 0.5
        return float(sides * config.get("max_shift", 0.75) + config.get("base_shift", 0.25))

    def set_times(self, pipe: Any, scheduler: Any, steps: int, shape: Sequence[int]) -> None:
        """See `Adaptor.set_times`: whole times, whose sigmas the scheduler shifts."""
        total = scheduler.config.num_train_timesteps
        times = numpy.linspace(total, 1.0, steps).astype(numpy.int64).astype(numpy.float32)
        scheduler.set_timesteps(timesteps=times, sigmas=times / total, mu=self.shift(pipe, shape))

    def _unshifted(self, pipe: Any, times: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """The times of which the scheduler made these: sigma / (s - (s - 1) sigma)."""
        config = pipe.scheduler.config
        factor, sigmas = shift_factor(config, self.shift(pipe, shape)), times.double() / config.num_train_timesteps
        times = config.num_train_timesteps * sigmas / (factor - (factor - 1) * sigmas)
        # The sampler's are whole; its sigmas, rounded to float32, take them less than 1e-3 from there.
        return times.round(decimals=2).float()


def _ask(pipe: Any, noisy: torch.Tensor, times: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    transformer = pipe.transformer
    places = {"device": noisy.device, "dtype": transformer.dtype}
    size = torch.tensor([[side * pipe.vae_scale_factor for side in noisy.shape[-2:]]], **places)
    size = size.expand(len(noisy), -1)
    return torch.as_tensor(
        transformer(
            hidden_states=noisy.to(transformer.dtype),
            encoder_hidden_states=states.to(transformer.dtype),
            timestep=times,
            original_size=size,
            target_size=size,
            crop_coords=torch.zeros_like(size),
            return_dict=False,
        )[0]
    )
