"""Rows of a concept and of its anchor in pairs, as the ports of a group read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from erasers.models.ports import Group
from erasers.text.prompts import Prompt
from erasers.text.states import Encoded, Rows, pair_rows


def stack_pairs(
    group: Group, encoded: Mapping[Prompt, Encoded], pairs: Sequence[tuple[Prompt, Prompt]], policy: Rows
) -> tuple[torch.Tensor, torch.Tensor]:
    """Erased rows and anchor rows `[n, d]` of all prompt pairs, as the ports of a group read them."""
    if group.kind == "pooled":
        states = [tuple(torch.as_tensor(encoded[prompt].pooled)[None] for prompt in pair) for pair in pairs]
    else:
        states = [pair_rows(encoded[old], encoded[new], policy) for old, new in pairs]
    return group.read(torch.cat([old for old, _ in states])), group.read(torch.cat([new for _, new in states]))


def check_rows(group: Group, erase: torch.Tensor, anchor: torch.Tensor) -> None:
    """Refuse rows that do not fit the ports, or that leave nothing to do.

    Raises:
        ValueError: Says which.
    """
    width, got = group.ports[0].module.in_features, erase.shape[1]
    if got != width and not (group.kind == "pooled" and got < width):
        raise ValueError(f"expected text states of width {width}, got {got}; is the text encoder its own?")
    if torch.equal(erase, anchor):
        raise ValueError("expected anchors that differ from the concepts, got the same token embeddings")
