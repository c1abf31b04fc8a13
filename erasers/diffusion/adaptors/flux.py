"""FLUX.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from erasers.diffusion.adaptors.adaptor import Guides
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.packs import Packed, grid_ids, packed, unpacked
from erasers.models.calls import handed_on


class Flux(Packed):
    """FLUX.1: states of T5, the pooled vector of CLIP; latents in packs of 2 x 2; the guidance scale is an input."""

    title = "FLUX.1"
    denoiser = "FluxTransformer2DModel"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")

    def guides(self, pipe: Any) -> Guides:
        """See `Adaptor.guides`: the schnell model is not guided."""
        return "embedded" if pipe.transformer.config.guidance_embeds else "never"

    def encode(self, pipe: Any, texts: Sequence[str], clip_skip: int | None = None) -> Condition:
        """See `Adaptor.encode`."""
        states, pooled, _ = pipe.encode_prompt(list(texts), **handed_on(pipe))
        return Condition(states, pooled)

    def written(self, pipe: Any, condition: Condition, name: str) -> list[torch.Tensor]:
        """See `Adaptor.written`."""
        pooled = name == "text_encoder" and condition.pooled is not None
        return [condition.pooled if pooled else condition.states]  # type: ignore[list-item]

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
