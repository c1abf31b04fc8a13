"""Text states of the CLIP encoders of Stable Diffusion 1.x, 2.x and SDXL, no longer than they are needed.

These encoders are causal: the state of a token does not depend on what follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from erasers.models.prompts import converted
from erasers.text.prompts import Prompt
from erasers.text.states import Encoded, Rows, Segment

_TOKENS_A_BATCH = 2048


@dataclass(frozen=True)
class _Encoder:
    pipe: Any
    tokenizer: Any
    model: Any
    penultimate: bool
    skip: int | None


def encode_clip(
    pipe: Any,
    parts: Sequence[tuple[str, Any, Any]],
    prompts: Sequence[Prompt],
    policy: Rows,
    *,
    penultimate: bool,
    skip: int | None = None,
) -> dict[Prompt, Encoded]:
    """States of each prompt, those of several encoders side by side.

    Args:
        pipe: The pipeline, which may rewrite prompts before they are tokenised.
        parts: (name, tokenizer, text encoder).
        prompts: Distinct prompts.
        policy: Under `last`, tokens after the last subject token are not encoded.
        penultimate: The denoiser reads the states before the last layer, instead of those after the last LayerNorm.
        skip: Last layers that are left out, as the pipelines' `clip_skip`; None leaves out none.

    Raises:
        ValueError: Tokenizers that split a prompt differently, or more layers left out than there are.
    """
    encoders = [_Encoder(pipe, tokenizer, model, penultimate, skip) for _, tokenizer, model in parts]
    encoded = [_encode_one(encoder, prompts, policy) for encoder in encoders]
    results = {}
    for index, prompt in enumerate(prompts):
        states, lasts = zip(*(states_of[index] for states_of in encoded), strict=True)
        if len(set(lasts)) > 1:
            raise ValueError(f"expected both tokenizers to split {prompt.text!r} alike, got last tokens {lasts}")
        results[prompt] = Encoded((Segment(torch.cat(states, dim=-1), lasts[0]),))
    return results


def _encode_one(encoder: _Encoder, prompts: Sequence[Prompt], policy: Rows) -> list[tuple[torch.Tensor, int]]:
    """(states, last subject token) of each prompt by one encoder."""
    length = _max_length(encoder)
    ids, mask = _tokenize(encoder, [prompt.text for prompt in prompts], length)
    # The mask counts BOS, subject tokens and one EOS; '' has no subject and starts at BOS.
    ends = mask.sum(dim=1) - 2
    partial = [index for index, prompt in enumerate(prompts) if prompt.head != prompt.text]
    if partial:
        heads = _tokenize(encoder, [prompts[index].head for index in partial], length)[1]
        ends[partial] = heads.sum(dim=1) - 2
    lasts = ends.clamp(min=0).tolist()
    short = policy == "last" and _is_causal(encoder.model)
    sizes = [last + 1 if short else length for last in lasts]
    results: list[tuple[torch.Tensor, int]] = [(torch.empty(0), 0)] * len(prompts)
    for size, batch in _batches(sizes):
        states = _states(encoder, ids[batch, :size], mask[batch, :size])
        for row, index in enumerate(batch):
            results[index] = states[row], lasts[index]
    return results


def _tokenize(encoder: _Encoder, texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, each `[texts, length]`."""
    texts = [converted(encoder.pipe, encoder.tokenizer, text) for text in texts]
    tokens = encoder.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"]


@torch.no_grad()
def _states(encoder: _Encoder, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    first = next(encoder.model.parameters(), None)
    device = ids.device if first is None or first.is_meta else first.device
    use_mask = getattr(getattr(encoder.model, "config", None), "use_attention_mask", False)
    given = {"attention_mask": mask.to(device) if use_mask else None}
    if encoder.penultimate or encoder.skip is not None:
        layers = encoder.model(ids.to(device), output_hidden_states=True, **given).hidden_states
        back = (encoder.skip or 0) + (2 if encoder.penultimate else 1)
        if back > len(layers):
            raise ValueError(
                f"expected clip_skip below the {len(layers) - 1} layers of the encoder, got {encoder.skip}"
            )
        output = layers[-back]
        if not encoder.penultimate:
            output = getattr(encoder.model, "text_model", encoder.model).final_layer_norm(output)
    else:
        output = encoder.model(ids.to(device), **given)[0]
    return torch.as_tensor(output).detach().cpu()


def _batches(sizes: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Indices grouped by equal size (so that nothing is padded), in batches of a bounded number of tokens."""
    groups: dict[int, list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    batches = []
    for size, group in sorted(groups.items()):
        step = max(1, _TOKENS_A_BATCH // size)
        batches += [(size, group[start : start + step]) for start in range(0, len(group), step)]
    return batches


def _max_length(encoder: _Encoder) -> int:
    limit = getattr(getattr(encoder.model, "config", None), "max_position_embeddings", None)
    length = int(encoder.tokenizer.model_max_length)
    return min(length, int(limit)) if limit else length


def _is_causal(model: Any) -> bool:
    names = {cls.__name__ for cls in type(model).__mro__}
    return bool(names & {"CLIPTextModel", "CLIPTextModelWithProjection"})
