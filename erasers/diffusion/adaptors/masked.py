"""Families whose pipelines return states and a mask, and encode the negative prompt by rules of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from erasers.diffusion.adaptors.adaptor import Adaptor
from erasers.diffusion.adaptors.condition import Condition
from erasers.models.calls import handed_on


class Masked(Adaptor):
    """Families whose `encode_prompt` returns states and mask of the prompt, then those of the negative one."""

    def encode(self, pipe: Any, texts: Sequence[str], clip_skip: int | None = None) -> Condition:
        """See `Adaptor.encode`."""
        states, mask, *_ = pipe.encode_prompt(list(texts), **handed_on(pipe))
        return Condition(states, mask=mask.cpu())

    def unprompted(self, pipe: Any) -> Condition:
        """See `Adaptor.unprompted`: only the negative prompt is encoded, as the one beside it is given as zeros."""
        options = {**handed_on(pipe), "do_classifier_free_guidance": True}
        # PixArt makes the negative prompt as long as these.
        nothing = torch.zeros(1, options["max_sequence_length"], device=options["device"])
        given = {"prompt_embeds": nothing[..., None], "prompt_attention_mask": nothing}
        *_, states, mask = pipe.encode_prompt(None, **given, **options)
        return Condition(states, mask=mask.cpu())
