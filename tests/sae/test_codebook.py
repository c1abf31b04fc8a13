"""Codes of a vector quantisation: what they are, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from erasers.sae.codebook import codebook, codebook_sae


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(count: int = 6, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of several lengths around directions, and the direction of each."""
    generator = drawn(3)
    directions = functional.normalize(torch.randn(count, width, generator=generator), dim=1)
    own = torch.arange(count).repeat(30)
    noise = 0.05 * torch.randn(len(own), width, generator=generator)
    return (directions[own] + noise) * (0.5 + torch.rand(len(own), 1, generator=generator)), directions


def test_a_step_makes_no_row_less_like_its_code():
    x = torch.randn(300, 8, generator=drawn())
    likeness = codebook(x, 24, drawn(), steps=30).likeness
    assert all(after >= before - 1e-6 for before, after in zip(likeness, likeness[1:], strict=False))
    assert likeness[-1] > likeness[0] + 0.01


def test_codes_are_the_directions_that_rows_have():
    x, directions = clusters()
    codes = codebook(x, len(directions), drawn()).codes
    assert (codes @ directions.T).amax(dim=0).min() > 0.99
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(len(codes)))


def test_a_code_is_a_fixed_point():
    x = torch.randn(200, 8, generator=drawn()) + 3
    sae = codebook_sae(x, 20, drawn())
    for length in (0.5, 1.0, 4.0):
        rows = sae.b_pre + length * sae.decoder
        codes = sae.encode(rows)
        assert torch.equal(codes.features, torch.arange(20))
        torch.testing.assert_close(codes.values, torch.full((20,), length))
        torch.testing.assert_close(sae.decode(codes), rows)
    # Any other row has one code at most, and what is decoded is coded by the same.
    codes = sae.encode(x)
    assert torch.bincount(codes.rows).max() == 1
    assert torch.equal(sae.encode(sae.decode(codes)).features, codes.features)


def test_what_is_alike_and_what_is_too_few():
    same = torch.ones(5, 3)
    assert torch.isfinite(codebook(same, 4, drawn()).codes).all()
    with pytest.raises(ValueError, match="at least 6 rows for as many codes, got 5"):
        codebook(same, 6, drawn())
