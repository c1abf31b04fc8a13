"""Sana."""

from __future__ import annotations

from typing import Any

import torch

from erasers.diffusion.adaptors.adaptor import refuse_more_inputs, whole
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.masked import Masked


class Sana(Masked):
    """Sana: states of Gemma 2 behind an instruction, with a mask."""

    title = "Sana"
    denoiser = "SanaTransformer2DModel"

    def check(self, pipe: Any) -> None:
        """See `Adaptor.check`."""
        super().check(pipe)
        distilled = pipe.transformer.config.get("guidance_embeds", False)
        refuse_more_inputs(
            pipe, "the guidance scale, too: it is distilled (Sprint) to draw in a few steps" if distilled else ""
        )

    def predict(
        self, pipe: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition, guidance: float
    ) -> torch.Tensor:
        """See `Adaptor.predict`."""
        transformer = pipe.transformer
        return torch.as_tensor(
            transformer(
                noisy.to(transformer.dtype),
                timestep=whole(pipe, times) * transformer.config.timestep_scale,
                encoder_hidden_states=condition.states.to(transformer.dtype),
                encoder_attention_mask=None if condition.mask is None else condition.mask.to(noisy.device),
                return_dict=False,
            )[0]
        )
