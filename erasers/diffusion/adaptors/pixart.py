"""PixArt."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from erasers.diffusion.adaptors.adaptor import refuse_other_channels
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.masked import Masked


class PixArt(Masked):
    """PixArt Alpha and Sigma: a schedule of alphas; states of T5 with a mask; Alpha reads sizes beside them."""

    title = "PixArt"
    denoiser = "PixArtTransformer2DModel"
    flow: ClassVar[bool] = False

    def check(self, pipe: Any) -> None:
        """See `Adaptor.check`: half of what it says may be the variance."""
        config = pipe.transformer.config
        out = config.out_channels or config.in_channels
        refuse_other_channels(pipe, config.in_channels, out // 2 if out == 2 * config.in_channels else out)

    def predict(
        self, pipe: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition, guidance: float
    ) -> torch.Tensor:
        """See `Adaptor.predict`."""
        transformer = pipe.transformer
        output = transformer(
            noisy.to(transformer.dtype),
            timestep=times,
            encoder_hidden_states=condition.states.to(transformer.dtype),
            encoder_attention_mask=None if condition.mask is None else condition.mask.to(noisy.device),
            added_cond_kwargs=_sizes(pipe, noisy),
            return_dict=False,
        )[0]
        return torch.as_tensor(output[:, : noisy.shape[1]])


def _sizes(pipe: Any, noisy: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """Height and width of the picture in pixels `[n, 2]` and their ratio `[n, 1]`, for the models that read them."""
    if not pipe.transformer.use_additional_conditions:
        return {"resolution": None, "aspect_ratio": None}
    height, width = (side * pipe.vae_scale_factor for side in noisy.shape[-2:])
    places = {"device": noisy.device, "dtype": pipe.transformer.dtype}
    rows = len(noisy)
    sides, ratio = torch.tensor([[height, width]], **places), torch.tensor([[height / width]], **places)
    return {"resolution": sides.expand(rows, -1), "aspect_ratio": ratio.expand(rows, -1)}
