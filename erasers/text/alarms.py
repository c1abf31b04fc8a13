"""Thresholds that hardly any kept prompt passes, found on the kept prompts themselves."""

from __future__ import annotations

import math

import torch

# The same prompt in another batch, or in single precision, differs in its last digits.
_ROUNDING = 1e-4


def gates(kept: torch.Tensor, never: torch.Tensor, share: float) -> torch.Tensor:
    """The lowest thresholds `[k]` that no more than a share of kept prompts passes, and certain others never do.

    A prompt passes where one of its k scores is above its threshold. Those that may pass are the ones with the largest
    score of all.

    Args:
        kept: Scores of kept prompts `[n, k]`, all of one scale.
        never: Scores of what may not pass in any case `[m, k]`, such as of the empty prompt.
        share: From 0 to below 1.
    """
    alarms = math.floor(share * len(kept))
    quiet = kept.amax(dim=1).argsort(descending=True)[alarms:]
    highest = torch.cat([kept[quiet], never]).amax(dim=0)
    return highest + _ROUNDING * highest.abs().clamp(min=_ROUNDING)
