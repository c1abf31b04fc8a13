"""A pair of prompts that a LoRA learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from erasers.options import check_fields, require_least


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What the prediction with one prompt is to become, in predictions of the frozen model with others.

    Args:
        target: The prompt whose prediction is trained.
        positive: What is taken away from it, or added; None: the target.
        unconditional: What that is counted from, and what pictures are guided away from.
        neutral: Where it starts; None: `unconditional`.
        action: `erase` takes away, `enhance` adds.
        guidance_scale: How much; with 0 the prediction stays that of `neutral`.
        size: Of the pictures in pixels; None: the model's own.
        batch: Latents an iteration.
        multiplier: Strength of the LoRA meanwhile.
        weight: Of the loss.
        beside: Learned in one iteration with the pair before it, on the same latents.
    """

    target: str
    positive: str | None = None
    unconditional: str = ""
    neutral: str | None = None
    action: Literal["erase", "enhance"] = "erase"
    guidance_scale: float = 1.0
    size: int | None = None
    batch: int = 1
    multiplier: float = 1.0
    weight: float = 1.0
    beside: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        require_least(self, size=8, batch=1, weight=0)
        if self.size is not None and self.size % 8:
            raise ValueError(f"expected size as a multiple of 8, got {self.size}")
        object.__setattr__(self, "positive", self.target if self.positive is None else self.positive)
        object.__setattr__(self, "neutral", self.unconditional if self.neutral is None else self.neutral)

    @property
    def asked(self) -> tuple[str, ...]:
        """The prompts that the frozen model is asked for: neutral, positive, unconditional, where they count."""
        neutral, positive = str(self.neutral), str(self.positive)
        return (neutral, positive, self.unconditional) if self.guidance_scale else (neutral,)

    @property
    def shift(self) -> float:
        """s of `goal`."""
        return -self.guidance_scale if self.action == "erase" else self.guidance_scale


def goal(neutral: torch.Tensor, positive: torch.Tensor, unconditional: torch.Tensor, shift: float) -> torch.Tensor:
    """eps*(neutral) + s (eps*(positive) - eps*(unconditional)), with s below 0 to erase; velocities along a flow.

    With neutral = unconditional = "" and positive = c that is equation 7 of ESD (arXiv 2303.07345) at eta = -s.
    """
    return neutral + shift * (positive - unconditional)
