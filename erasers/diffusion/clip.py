"""Text states of the one CLIP encoder of Stable Diffusion 1 and 2, by token ids."""

from __future__ import annotations

from typing import Any

import torch


def encode(pipe: Any, ids: torch.Tensor, clip_skip: int | None = None) -> torch.Tensor:
    """Text states `[rows, n, d]` of token ids `[rows, n]`, as a denoiser of one text encoder gets them.

    With `clip_skip` these are the states before so many last layers, after the final norm.
    """
    encoder = pipe.text_encoder
    mask = None
    if getattr(encoder.config, "use_attention_mask", False):
        # Padded behind the end token, which may be the padding token itself: all up to the first end token counts.
        ends = (ids == pipe.tokenizer.eos_token_id).long()
        mask = ((ends.cumsum(dim=-1) - ends) == 0).long().to(encoder.device)
    ids = ids.to(encoder.device)
    states: torch.Tensor
    if clip_skip is None:
        states = encoder(ids, attention_mask=mask)[0]
    else:
        layers = encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        states = getattr(encoder, "text_model", encoder).final_layer_norm(layers[-(clip_skip + 1)])
    return states
