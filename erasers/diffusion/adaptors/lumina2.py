"""Lumina 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from erasers.diffusion.adaptors.adaptor import EvenSigmas, moved_by
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.masked import Masked


class Lumina2(Masked, EvenSigmas):
    """Lumina-Image 2: states of Gemma 2 behind an instruction, with a mask; its times run from noise to pictures."""

    title = "Lumina 2"
    denoiser = "Lumina2Transformer2DModel"

    def guided(self, conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
        """See `Adaptor.guided`: every row of latents keeps the norm that it has unguided."""
        guided = super().guided(conditional, unconditional, scale)
        kept = conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        return torch.as_tensor(guided * kept)

    def predict(
        self, pipe: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition, guidance: float
    ) -> torch.Tensor:
        """See `Adaptor.predict`: it predicts x_0 - noise."""
        transformer, mask = pipe.transformer, condition.mask
        mask = torch.ones(condition.states.shape[:2], dtype=torch.long) if mask is None else mask
        output = transformer(
            hidden_states=noisy.to(transformer.dtype),
            timestep=1 - times / pipe.scheduler.config.num_train_timesteps,
            encoder_hidden_states=condition.states.to(transformer.dtype),
            # It reads lengths, which masks on the meta device do not have.
            encoder_attention_mask=mask if noisy.is_meta else mask.to(noisy.device),
            return_dict=False,
        )[0]
        return -torch.as_tensor(output)

    def shift(self, pipe: Any, shape: Sequence[int]) -> float | None:
        """See `Adaptor.shift`: its pipeline takes the channels for the number of tokens."""
        config = pipe.scheduler.config
        return moved_by(config, shape[0]) if config.get("use_dynamic_shifting", False) else None
