"""The states of a prompt, and the choice of their rows.

Row policies, for a prompt whose last subject token is at position i (the first token's, 0, for the empty prompt):

* `last`: row i alone.
* `tail`: row i and all that follow, with the end and padding tokens that the denoiser sees.
* `all`: every row that the denoiser sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

Rows: TypeAlias = Literal["last", "tail", "all"]


@dataclass(frozen=True)
class Segment:
    """States of one prompt by one text encoder (or by several side by side).

    Args:
        states: `[tokens, d]`: up to the last subject token under the policy `last`, else all that the denoiser sees.
        last: Position of the last subject token.
    """

    states: torch.Tensor
    last: int

    def rows(self, policy: Rows) -> torch.Tensor:
        """The rows `[n, d]` of that policy."""
        if policy == "last":
            return self.states[self.last : self.last + 1]
        return self.states[self.last :] if policy == "tail" else self.states


@dataclass(frozen=True)
class Encoded:
    """What a denoiser gets to see of one prompt.

    Args:
        segments: Sequences of states that stand one after the other.
        pooled: The vector `[d]` beside them, where it was asked for.
    """

    segments: tuple[Segment, ...]
    pooled: torch.Tensor | None = None

    def rows(self, policy: Rows) -> torch.Tensor:
        """The rows `[n, d]` of that policy, of all segments."""
        return torch.cat([segment.rows(policy) for segment in self.segments])


def pair_rows(concept: Encoded, anchor: Encoded, policy: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the concept and, row by row, what each of them becomes; both `[n, d]`.

    `tail` starts both at their last subject token and takes as many rows as the longer prompt has left. `all` starts
    both at their first row. Where the denoiser does not see padding, and prompts have states of different lengths, the
    last row of the anchor stands for what it lacks. An empty anchor starts at its first row under `last` and `tail`.
    """
    pairs = [_pair(old, new, policy) for old, new in zip(concept.segments, anchor.segments, strict=True)]
    return torch.cat([old for old, _ in pairs]), torch.cat([new for _, new in pairs])


def _pair(concept: Segment, anchor: Segment, policy: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    old, new = concept.rows(policy), anchor.rows(policy)
    if policy == "tail" and len(concept.states) == len(anchor.states):
        count = min(len(old), len(new))
        return old[:count], new[:count]
    index = torch.arange(len(old)).clamp(max=len(new) - 1)
    return old, new[index]
