"""AuraFlow."""

from __future__ import annotations

from typing import Any

import torch

from erasers.diffusion.adaptors.adaptor import Adaptor
from erasers.diffusion.adaptors.condition import Condition


class AuraFlow(Adaptor):
    """AuraFlow: states of UMT5, zeros where the prompt has ended, which its denoiser reads, too."""

    title = "AuraFlow"
    denoiser = "AuraFlowTransformer2DModel"

    def predict(
        self, pipe: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition, guidance: float
    ) -> torch.Tensor:
        """See `Adaptor.predict`."""
        transformer = pipe.transformer
        return torch.as_tensor(
            transformer(
                noisy.to(transformer.dtype),
                timestep=(times / 1000).to(transformer.dtype),
                encoder_hidden_states=condition.states.to(transformer.dtype),
                return_dict=False,
            )[0]
        )
