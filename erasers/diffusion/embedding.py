"""One vector of a text, in the text encoders of any pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from erasers.diffusion.adaptors.adaptor import module_of
from erasers.diffusion.tokens import longest, tokenizer_of
from erasers.models.encoder_blocks import is_clip
from erasers.models.prompts import converted


def embedded(pipe: Any, texts: Sequence[str], encoders: Sequence[str]) -> torch.Tensor:
    """What encoders make of texts as a whole `[texts, d]`, with gradients.

    Of CLIP that is the pooled embedding, projected where the encoder has a projection; of others the mean of the last
    states of its tokens. Those of several encoders lie side by side, each of unit length, so that none has more say.

    Args:
        pipe: A pipeline of a family in `erasers.diffusion.adaptors.table`.
        texts: As they are typed; the pipeline's own words around them are left out.
        encoders: Their names.
    """
    parts = [_embedded(pipe, texts, name) for name in encoders]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([functional.normalize(part.float(), dim=-1).to(parts[0].device) for part in parts], dim=-1)


def _embedded(pipe: Any, texts: Sequence[str], name: str) -> torch.Tensor:
    encoder, tokenizer = module_of(pipe, name), tokenizer_of(pipe, name)
    batch, length = [converted(pipe, tokenizer, text) for text in texts], longest(tokenizer)
    if is_clip(encoder):
        options = {"padding": "max_length", "max_length": length, "truncation": True}
        output = encoder(tokenizer(batch, return_tensors="pt", **options).input_ids.to(encoder.device))
        return torch.as_tensor(output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output)
    options = {"padding": True} if length is None else {"padding": True, "max_length": length, "truncation": True}
    inputs = tokenizer(batch, return_tensors="pt", **options).to(encoder.device)
    mask = inputs.attention_mask
    states = encoder(inputs.input_ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    return torch.as_tensor((states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True))
