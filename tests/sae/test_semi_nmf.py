"""Semi-nonnegative factors: what no step may do, and the features that they give back."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from erasers.sae.autoencoder import quality
from erasers.sae.semi_nmf import multiplied_codes, semi_nmf, semi_nmf_sae, solved_features


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of sums of few of eight directions with weights above 0, these directions and these weights."""
    generator = drawn(seed)
    features = functional.normalize(torch.randn(8, 24, generator=generator).double(), dim=1)
    weights = torch.rand(600, 8, generator=generator).double() * (torch.rand(600, 8, generator=generator) < 0.2)
    weights = weights[weights.sum(dim=1) > 0.1]
    return weights @ features + 0.01 * torch.randn(len(weights), 24, generator=generator), features, weights


@pytest.mark.parametrize("count", [4, 12, 40])
def test_no_step_raises_the_loss_and_codes_stay_nonnegative(count):
    x = torch.randn(200, 12, generator=drawn(1)).double() + 0.5
    codes = torch.rand(200, count, generator=drawn(2)).double()
    for _ in range(20):
        features = torch.randn(count, 12, generator=drawn(3)).double() if count == 4 else solved_features(x, codes)
        before = (x - codes @ features).pow(2).sum()
        multiplied = multiplied_codes(x, codes, features)
        after = (x - multiplied @ features).pow(2).sum()
        assert after <= before * (1 + 1e-9)
        solved = (x - multiplied @ solved_features(x, multiplied)).pow(2).sum()
        assert solved <= after * (1 + 1e-6)
        assert (multiplied >= 0).all()
        codes = multiplied


def test_features_that_are_solved_for_are_those_of_least_squares():
    x, codes = torch.randn(50, 6, generator=drawn()).double(), torch.rand(50, 4, generator=drawn(1)).double()
    torch.testing.assert_close(solved_features(x, codes), torch.linalg.lstsq(codes, x).solution, rtol=1e-5, atol=1e-7)


def test_planted_features_are_given_back():
    matched = 0
    for seed in range(4):
        x, features, _ = planted(seed)
        factors = semi_nmf(x, 8, drawn())
        assert all(
            after <= before * (1 + 1e-6) for before, after in zip(factors.losses, factors.losses[1:], strict=False)
        )
        assert factors.losses[-1] < 0.005 * x.pow(2).sum()
        likeness = functional.normalize(factors.features, dim=1) @ features.T
        matched += int((likeness.amax(dim=0) > 0.85).sum())
    assert matched >= 24  # of 32; 4 of 8 from a random start


def test_in_the_form_of_an_autoencoder():
    x, features, weights = planted(0)
    rows = x.float() + 2
    sae = semi_nmf_sae(rows, 8, drawn())
    assert quality(sae, [rows]).explained_variance > 0.9
    torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(8))
    # Its features tell where those that were planted are from where they are not.
    strength, own = sae.activations(rows), (sae.decoder.double() @ features.T).argmax(dim=0)
    areas = [
        (strength[weights[:, number] > 0, feature][:, None] > strength[weights[:, number] == 0, feature])
        .double()
        .mean()
        for number, feature in enumerate(own.tolist())
    ]
    assert sum(areas) / len(areas) > 0.9
    assert torch.equal(sae.encoder, semi_nmf_sae(rows, 8, drawn()).encoder)
