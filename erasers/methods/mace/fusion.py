"""The closed forms of MACE: which rows stage 1 maps, and one edit a layer for the additions of all concepts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from erasers.closed_form.algebra import compress, gram
from erasers.closed_form.layers import low_rank
from erasers.text.states import Segment


def around_subject(old: Segment, new: Segment, words: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows `[n, d]` of all tokens but the subject's, and row by row those of the prompt with the anchor.

    Args:
        old: A prompt with the concept, all of its states.
        new: The same with the anchor.
        words: How many tokens the concept and the anchor have.
    """
    sides = (old, new)
    front = max(0, min(side.last + 1 - count for side, count in zip(sides, words, strict=True)))
    back = min(len(side.states) - side.last - 1 for side in sides)
    first, second = (
        torch.cat([side.states[:front], side.states[side.last + 1 : side.last + 1 + back]]) for side in sides
    )
    return first, second


def fuse(rows: Sequence[torch.Tensor], downs: torch.Tensor, held: torch.Tensor, ridge: float) -> torch.Tensor:
    """A' of the sum of B_i A_i' that is nearest to each B_i A_i on the rows of its concept.

    With S = sum_i E_i'E_i + H + ridge I, the minimiser over D of

        sum_i | (D - B_i A_i) E_i' |^2 + tr(D H D') + ridge |D|^2

    is D = sum_i B_i A_i' with A_i' = A_i E_i'E_i S^-1, for every layer with the same S.

    Args:
        rows: E_i `[m, d]` of n concepts.
        downs: A_i of L layers `[n, L, d]`.
        held: H `[d, d]`.
        ridge: Above 0.

    Returns:
        A_i' `[n, L, d]` in float64.
    """
    pulled = torch.stack([(own @ e.double().T) @ e.double() for own, e in zip(downs.double(), rows, strict=True)])
    return solved(pulled.flatten(0, 1), sum_of(rows) + held.double(), ridge).view_as(pulled)


def brought_back(a: torch.Tensor, rows: Sequence[torch.Tensor], held: torch.Tensor, ridge: float) -> torch.Tensor:
    """A of stage 1 where fusion holds what is preserved to the unedited weights: A (sum_i E_i'E_i) S^-1; see `fuse`."""
    total = sum_of(rows)
    return solved(a.double() @ total, total + held.double(), ridge)


def sum_of(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """sum_i E_i'E_i `[d, d]`."""
    return torch.stack([gram(e) for e in rows]).sum(dim=0)


def solved(right: torch.Tensor, total: torch.Tensor, ridge: float) -> torch.Tensor:
    """right (total + ridge I)^-1 for symmetric `total`."""
    factor = torch.linalg.cholesky(total + ridge * torch.eye(len(total), dtype=total.dtype))
    return torch.cholesky_solve(right.T, factor).T.contiguous()


def slim(a: torch.Tensor, b: torch.Tensor, error: float) -> tuple[torch.Tensor, torch.Tensor]:
    """B A of as few rows of A as leave out a share `error` of it."""
    small = low_rank(b @ a, error)
    return compress(a, b) if small is None or len(a) <= len(small[0]) else small
