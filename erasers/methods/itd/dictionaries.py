"""Features that are made of the prompts themselves, in place of those of a trained autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch.nn import functional

from erasers.sae.autoencoder import SAE, assembled
from erasers.sae.codebook import codebook_sae
from erasers.sae.semi_nmf import semi_nmf_sae
from erasers.text.contexts import shuffled

Dictionary = Literal["sae", "snmf", "codebook", "means"]

_ROWS = 16_384


def dictionary_of(
    kind: Dictionary, named: Sequence[torch.Tensor], kept: torch.Tensor, size: int, generator: torch.Generator
) -> SAE:
    """A dictionary of rows, in the form of a sparse autoencoder.

    Args:
        kind: Any but `sae`.
        named: Rows of the prompts with each name that is erased, `[N, d]` each.
        kept: Rows of the others.
        size: Features of `snmf` and `codebook`; `means` has one for each name.
        generator: Says where they start, and which rows are taken of very many.

    Raises:
        ValueError: Fewer rows than features.
    """
    if kind == "means":
        return means_sae(named, kept)
    rows = torch.cat([*named, kept])
    rows = rows[shuffled(range(len(rows)), _ROWS, generator)] if len(rows) > _ROWS else rows
    return codebook_sae(rows, size, generator) if kind == "codebook" else semi_nmf_sae(rows, size, generator)


def means_sae(named: Sequence[torch.Tensor], kept: torch.Tensor) -> SAE:
    """One feature for each name: along mean(with) - mean(without), counted from mean(without); arguments as above."""
    without = kept.mean(dim=0)
    directions = torch.stack([functional.normalize(rows.mean(dim=0) - without, dim=0) for rows in named])
    tensors = {"encoder": directions, "decoder": directions, "b_pre": without}
    none = {"b_lat": torch.zeros(len(named)), "threshold": torch.zeros(1)}
    return assembled(tensors | none, len(named), "batchtopk")
