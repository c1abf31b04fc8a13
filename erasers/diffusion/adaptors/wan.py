"""Wan."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from erasers.diffusion.adaptors.adaptor import Adaptor, in_groups, refuse_other_channels, whole
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.videos import standardised
from erasers.models.calls import default_of
from erasers.models.families import UnsupportedPipeline


class Wan(Adaptor):
    """Wan 2.1 and 2.2: videos `[n, c, frames, h, w]`, here of one frame; 2.2 may have a second denoiser."""

    title = "Wan"
    denoiser = "WanTransformer3DModel"
    components: ClassVar[tuple[str, ...]] = ("transformer", "transformer_2")

    def check(self, pipe: Any) -> None:
        """See `Adaptor.check`."""
        for name in self.components[: 1 if _boundary(pipe) is None else 2]:
            if getattr(pipe, name, None) is None:
                raise UnsupportedPipeline(
                    f"expected {type(pipe).__name__} with its {name}, got None; load the pipeline with it"
                )
            config = getattr(pipe, name).config
            refuse_other_channels(pipe, config.in_channels, config.out_channels or config.in_channels)

    def predict(
        self, pipe: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition, guidance: float
    ) -> torch.Tensor:
        """See `Adaptor.predict`."""
        said, states, boundary = whole(pipe, times), condition.states, _boundary(pipe)
        if boundary is None or times.is_meta:
            # Times without values, as when what it needs is counted, are taken for those of high noise.
            return _ask(pipe, pipe.transformer, noisy, said, states)

        def ask(low: int, index: torch.Tensor) -> torch.Tensor:
            denoiser = pipe.transformer_2 if low else pipe.transformer
            return _ask(pipe, denoiser, noisy[index], said[index], states[index.to(states.device)])

        return in_groups(said < boundary * pipe.scheduler.config.num_train_timesteps, ask)

    def shape(self, pipe: Any, size: int | None = None) -> tuple[int, ...]:
        """See `Adaptor.shape`: one frame, of the size that the pipeline draws where nobody says."""
        sides = (default_of(pipe, name) if size is None else size for name in ("height", "width"))
        _, *patch = pipe.transformer.config.patch_size
        height, width = (
            side // (pipe.vae_scale_factor_spatial * squares) * squares
            for side, squares in zip(sides, patch, strict=True)
        )
        return int(pipe.transformer.config.in_channels), 1, height, width

    def scaled(self, pipe: Any, mean: torch.Tensor) -> torch.Tensor:
        """See `Adaptor.scaled`."""
        return standardised(pipe, mean)


def _boundary(pipe: Any) -> float | None:
    """The share of times below which the second denoiser is asked, where there is one."""
    ratio = pipe.config.get("boundary_ratio")
    return None if ratio is None else float(ratio)


def _ask(pipe: Any, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    if pipe.config.get("expand_timesteps"):
        # The model of pictures and text reads the time of each token.
        frames, height, width = noisy.shape[-3:]
        times = times[:, None].expand(-1, frames * (height // 2) * (width // 2))
    return torch.as_tensor(
        denoiser(
            hidden_states=noisy.to(denoiser.dtype),
            timestep=times,
            encoder_hidden_states=states.to(denoiser.dtype),
            return_dict=False,
        )[0]
    )
