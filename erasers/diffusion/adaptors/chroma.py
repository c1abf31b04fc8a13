"""Chroma."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.packs import Packed, grid_ids, packed, unpacked
from erasers.models.calls import handed_on


class Chroma(Packed):
    """Chroma: states of T5 with a mask; latents in packs of 2 x 2, as FLUX.1 has them, and no guidance scale inside."""

    title = "Chroma"
    denoiser = "ChromaTransformer2DModel"

    def encode(self, pipe: Any, texts: Sequence[str], clip_skip: int | None = None) -> Condition:
        """See `Adaptor.encode`."""
        states, _, mask, *_ = pipe.encode_prompt(list(texts), **handed_on(pipe))
        return Condition(states, mask=mask.cpu())

    def predict(
        self, pipe: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition, guidance: float
    ) -> torch.Tensor:
        """See `Adaptor.predict`."""
        transformer, states, mask = pipe.transformer, condition.states, condition.mask
        height, width = noisy.shape[-2:]
        places = {"device": noisy.device, "dtype": transformer.dtype}
        if mask is not None:
            # It is added to the logits as it is, so that its precision is that of the denoiser.
            mask = functional.pad(mask, (0, height // 2 * (width // 2)), value=1.0).to(**places)
        output = transformer(
            hidden_states=packed(noisy).to(transformer.dtype),
            timestep=times.to(transformer.dtype) / 1000,
            encoder_hidden_states=states.to(transformer.dtype),
            attention_mask=mask,
            txt_ids=torch.zeros(states.shape[1], 3, **places),
            img_ids=grid_ids(height // 2, width // 2).to(**places),
            return_dict=False,
        )[0]
        return unpacked(output, height, width)
