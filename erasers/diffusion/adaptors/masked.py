"""Families whose pipelines return states and a mask, and encode the negative prompt by rules of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        """See `Adaptor.unprompted`."""
        options = {**handed_on(pipe), "do_classifier_free_guidance": True}
        *_, states, mask = pipe.encode_prompt([""], **options)
        return Condition(states, mask=mask.cpu())
