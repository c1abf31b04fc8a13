"""Z-Image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from erasers.diffusion.adaptors.adaptor import EvenSigmas
from erasers.diffusion.adaptors.condition import Condition, cat
from erasers.models.calls import handed_on


class ZImage(EvenSigmas):
    """Z-Image: states of Qwen 3, as many as the prompt has tokens; it counts its times from noise to pictures."""

    title = "Z-Image"
    denoiser = "ZImageTransformer2DModel"

    def guided(self, conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
        """See `Adaptor.guided`: its scale is 0 where there is no guidance."""
        return conditional + scale * (conditional - unconditional)

    def encode(self, pipe: Any, texts: Sequence[str], clip_skip: int | None = None) -> Condition:
        """See `Adaptor.encode`."""
        prompts, _ = pipe.encode_prompt(list(texts), **handed_on(pipe))
        return cat(*(Condition(states[None], mask=torch.ones(1, len(states), dtype=torch.long)) for states in prompts))

    def predict(
        self, pipe: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition, guidance: float
    ) -> torch.Tensor:
        """See `Adaptor.predict`: it predicts x_0 - noise of lists of pictures with one frame."""
        transformer, states = pipe.transformer, condition.states.to(pipe.transformer.dtype)
        mask = torch.ones(states.shape[:2]) if condition.mask is None else condition.mask
        pictures = transformer(
            list(noisy.to(transformer.dtype)[:, :, None].unbind()),
            (1000 - times) / 1000,
            [prompt[:length] for prompt, length in zip(states, mask.sum(dim=1).long().tolist(), strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(pictures)[:, :, 0]

    def shape(self, pipe: Any, size: int | None = None) -> tuple[int, ...]:
        """See `Adaptor.shape`: its pipeline draws 1024 pixels where nobody says."""
        side = 2 * ((1024 if size is None else size) // (2 * pipe.vae_scale_factor))
        return int(pipe.transformer.config.in_channels), side, side
