"""What the denoiser reads of prompts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional


class Condition(NamedTuple):
    """What the denoiser reads of prompts.

    Args:
        states: `[n, tokens, d]`.
        pooled: `[n, p]`, which some families have beside them.
        mask: `[n, tokens]`, 0 where the denoiser does not look, on the CPU, where lengths are read; None: it sees all.
        image: Tokens of a picture `[n, k, d]`, where the denoiser has an IP-Adapter.
    """

    states: torch.Tensor
    pooled: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    image: torch.Tensor | None = None

    def rows(self, index: torch.Tensor) -> Condition:
        """Those of some prompts, in that order."""
        return Condition(*(None if value is None else value[index.to(value.device)] for value in self))  # type: ignore[arg-type]

    def part(self, rows: slice) -> Condition:
        """Those of neighbouring rows."""
        return Condition(*(None if value is None else value[rows] for value in self))  # type: ignore[arg-type]

    def expand(self, count: int) -> Condition:
        """Those of one prompt for so many latents; of as many prompts as they are."""
        return Condition(
            *(None if value is None else value.expand(count, *value.shape[1:]) for value in self)  # type: ignore[arg-type]
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> Condition:
        """The same elsewhere and in another precision, but for the mask."""
        pooled, image = (None if value is None else value.to(device, dtype) for value in (self.pooled, self.image))
        return self._replace(states=self.states.to(device, dtype), pooled=pooled, image=image)


def cat(*several: Condition) -> Condition:
    """Conditions one after the other; those with masks are padded behind to the longest."""
    longest = max(condition.states.shape[1] for condition in several)
    columns = zip(*(_padded(condition, longest) for condition in several), strict=True)
    present = [[value for value in column if value is not None] for column in columns]
    return Condition(*(torch.cat(values) if values else None for values in present))  # type: ignore[arg-type]


def _padded(condition: Condition, length: int) -> Condition:
    """With zeros behind, which the denoiser does not look at."""
    more = length - condition.states.shape[1]
    if condition.mask is None or not more:
        return condition
    states = functional.pad(condition.states, (0, 0, 0, more))
    return condition._replace(states=states, mask=functional.pad(condition.mask, (0, more)))
