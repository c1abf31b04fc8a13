"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from erasers.diffusion.adaptors.adaptor import Adaptor, module_of, moved_by
from erasers.diffusion.adaptors.condition import Condition
from erasers.models.calls import handed_on


class SD3(Adaptor):
    """Stable Diffusion 3 and 3.5: states of two CLIP encoders side by side, those of T5 behind; pooled CLIP beside."""

    title = "Stable Diffusion 3 and 3.5"
    denoiser = "SD3Transformer2DModel"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "text_encoder_3")
    optional: ClassVar[tuple[str, ...]] = ("text_encoder_3",)

    def encode(self, pipe: Any, texts: Sequence[str], clip_skip: int | None = None) -> Condition:
        """See `Adaptor.encode`."""
        states, _, pooled, _ = pipe.encode_prompt(list(texts), **handed_on(pipe), clip_skip=clip_skip)
        return Condition(states, pooled)

    def written(self, pipe: Any, condition: Condition, name: str) -> list[torch.Tensor]:
        """See `Adaptor.written`."""
        clip = condition.states[:, : pipe.tokenizer_max_length]
        if name == "text_encoder_3" or condition.pooled is None:
            return [condition.states[:, pipe.tokenizer_max_length :]]
        first = module_of(pipe, "text_encoder").config
        if name == "text_encoder":
            return [clip[..., : first.hidden_size], condition.pooled[:, : first.projection_dim]]
        width = int(module_of(pipe, "text_encoder_2").config.hidden_size)
        states = clip[..., first.hidden_size : first.hidden_size + width]
        return [states, condition.pooled[:, first.projection_dim :]]

    def predict(
        self, pipe: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition, guidance: float
    ) -> torch.Tensor:
        """See `Adaptor.predict`."""
        transformer = pipe.transformer
        pooled = condition.pooled
        return torch.as_tensor(
            transformer(
                hidden_states=noisy.to(transformer.dtype),
                timestep=times,
                encoder_hidden_states=condition.states.to(transformer.dtype),
                pooled_projections=None if pooled is None else pooled.to(transformer.dtype),
                return_dict=False,
            )[0]
        )

    def shift(self, pipe: Any, shape: Sequence[int]) -> float | None:
        """See `Adaptor.shift`."""
        config, patch = pipe.scheduler.config, int(pipe.transformer.config.patch_size)
        if not config.get("use_dynamic_shifting", False):
            return None
        # This pipeline's own default of `max_shift`, where the scheduler has none.
        return moved_by({"max_shift": 1.16, **config}, (shape[-2] // patch) * (shape[-1] // patch))
