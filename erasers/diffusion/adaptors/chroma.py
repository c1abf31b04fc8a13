"""Chroma."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from erasers.diffusion.adaptors.adaptor import module_of
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
        with _whole_mask(module_of(pipe, "transformer"), mask):
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


@contextmanager
def _whole_mask(transformer: Any, mask: torch.Tensor | None) -> Iterator[None]:
    """Inside, blocks that are computed again get the mask, which diffusers 0.42 keeps from those of one stream."""
    run: Callable[..., Any] | None = getattr(transformer, "_gradient_checkpointing_func", None)
    if run is None:
        yield
        return

    def masked(block: Any, *given: Any) -> Any:
        single = type(block).__name__ == "ChromaSingleTransformerBlock" and len(given) == 3
        return run(block, *given, mask) if single else run(block, *given)

    transformer._gradient_checkpointing_func = masked
    try:
        yield
    finally:
        transformer._gradient_checkpointing_func = run
