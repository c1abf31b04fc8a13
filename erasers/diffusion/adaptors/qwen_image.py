"""Qwen-Image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from erasers.diffusion.adaptors.adaptor import refuse_other_channels
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.packs import Packed, packed, unpacked
from erasers.diffusion.adaptors.videos import standardised
from erasers.models.calls import handed_on


class QwenImage(Packed):
    """Qwen-Image: states of Qwen 2.5 VL, as many as the prompt has tokens; latents in packs of 2 x 2."""

    title = "Qwen-Image"
    denoiser = "QwenImageTransformer2DModel"

    def check(self, pipe: Any) -> None:
        """See `Adaptor.check`."""
        config = pipe.transformer.config
        refuse_other_channels(pipe, config.in_channels, config.out_channels * config.patch_size**2)

    def guided(self, conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
        """See `Adaptor.guided`: every square of 2 x 2 keeps the norm that it has unguided."""
        asked, guided = packed(conditional), packed(super().guided(conditional, unconditional, scale))
        kept = guided * (asked.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return unpacked(kept, *conditional.shape[-2:])

    def encode(self, pipe: Any, texts: Sequence[str], clip_skip: int | None = None) -> Condition:
        """See `Adaptor.encode`."""
        states, mask = pipe.encode_prompt(list(texts), **handed_on(pipe))
        return Condition(states, mask=torch.ones(states.shape[:2], dtype=torch.long) if mask is None else mask.cpu())

    def unprompted(self, pipe: Any) -> Condition:
        """See `Adaptor.unprompted`: a space, by which the model is guided in its documentation."""
        return self.encode(pipe, [" "])

    def predict(
        self, pipe: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition, guidance: float
    ) -> torch.Tensor:
        """See `Adaptor.predict`."""
        transformer, mask = pipe.transformer, condition.mask
        height, width = noisy.shape[-2:]
        output = transformer(
            hidden_states=packed(noisy).to(transformer.dtype),
            timestep=times.to(transformer.dtype) / 1000,
            encoder_hidden_states=condition.states.to(transformer.dtype),
            encoder_hidden_states_mask=None if mask is None or mask.all() else mask.to(noisy.device),
            img_shapes=[[(1, height // 2, width // 2)]] * len(noisy),
            return_dict=False,
        )[0]
        return unpacked(output, height, width)

    def scaled(self, pipe: Any, mean: torch.Tensor) -> torch.Tensor:
        """See `Adaptor.scaled`: those of the only frame, `[n, c, h, w]`."""
        return standardised(pipe, mean)[:, :, 0]
