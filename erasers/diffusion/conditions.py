"""What the denoiser reads of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from erasers.diffusion.tokens import tokenise


class Condition(NamedTuple):
    """What the denoiser reads of prompts.

    Args:
        states: `[n, tokens, d]`.
        pooled: `[n, p]`, which SDXL has beside them.
    """

    states: torch.Tensor
    pooled: torch.Tensor | None = None

    def rows(self, index: torch.Tensor) -> Condition:
        """Those of some prompts, in that order."""
        index = index.to(self.states.device)
        return Condition(self.states[index], None if self.pooled is None else self.pooled[index])

    def part(self, rows: slice) -> Condition:
        """Those of neighbouring rows."""
        return Condition(self.states[rows], None if self.pooled is None else self.pooled[rows])


def cat(*several: Condition) -> Condition:
    """Conditions one after the other."""
    pooled = [condition.pooled for condition in several if condition.pooled is not None]
    states = torch.cat([condition.states for condition in several])
    return Condition(states, torch.cat(pooled) if pooled else None)


@torch.no_grad()
def conditions(pipe: Any, texts: Sequence[str], clip_skip: int | None = None) -> Condition:
    """What the pipeline itself makes of prompts, one of them at a time being enough for any memory.

    Args:
        pipe: A Stable Diffusion 1, 2 or XL pipeline.
        texts: Prompts.
        clip_skip: As the pipeline takes it.
    """
    if clip_skip is not None and not hasattr(pipe, "text_encoder_2"):
        # The pipelines' own `clip_skip` looks for the final norm where transformers 5 no longer has it.
        return cat(*(Condition(encode(pipe, tokenise(pipe, text), clip_skip)) for text in texts))
    more = {"device": pipe.unet.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    more |= {} if clip_skip is None else {"clip_skip": clip_skip}
    each = []
    for text in texts:
        output = pipe.encode_prompt(text, **more)
        each.append(Condition(output[0], output[2] if len(output) > 2 else None))
    return cat(*each)


def unprompted(pipe: Any) -> Condition:
    """What the pipeline guides with where nothing is asked for `[1]`: the empty prompt, or the zeros of SDXL.

    Pipelines leave no layer out here, whatever their `clip_skip`.
    """
    empty = conditions(pipe, [""])
    if not pipe.config.get("force_zeros_for_empty_prompt", False):
        return empty
    return Condition(torch.zeros_like(empty.states), None if empty.pooled is None else torch.zeros_like(empty.pooled))


def encode(pipe: Any, ids: torch.Tensor, clip_skip: int | None = None) -> torch.Tensor:
    """Text states `[rows, n, d]` of token ids `[rows, n]`, as the denoiser gets them when the pipeline draws.

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
