"""What the denoiser of a pipeline reads of prompts, without gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from erasers.diffusion.adaptors.condition import Condition, cat
from erasers.diffusion.adaptors.table import adaptor_of


@torch.no_grad()
def conditions(pipe: Any, texts: Sequence[str], clip_skip: int | None = None) -> Condition:
    """What the pipeline itself makes of prompts, one of them at a time being enough for any memory.

    Args:
        pipe: A pipeline of a family in `erasers.diffusion.adaptors.table`.
        texts: Prompts.
        clip_skip: As the pipeline takes it.
    """
    adaptor = adaptor_of(pipe)
    return cat(*(adaptor.encode(pipe, [text], clip_skip) for text in texts))


@torch.no_grad()
def unprompted(pipe: Any) -> Condition:
    """What the pipeline guides with where nothing is asked for `[1]`.

    Pipelines leave no layer out here, whatever their `clip_skip`.
    """
    return adaptor_of(pipe).unprompted(pipe)
