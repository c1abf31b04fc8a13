"""Distances between pictures: closed forms, another implementation's figures, and pictures that are known to differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from support.drawn import grey, pictures
from torch import Tensor, nn

from erasers.evaluation.pictures.distances import (
    Figure,
    Subsets,
    _mmd2,
    cmmd,
    cubic,
    feature_drift,
    fid,
    gaussian,
    kid,
    kid_rise,
)
from erasers.evaluation.pictures.features import JudgeFeatures, Layers, judge_layers
from erasers.worlds.shapes.judge import load_judge


def wave(first: int, rows: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Rows that look random and are the same everywhere: [rows, 8]."""
    i, j = torch.arange(first, first + rows, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)
    return shift + scale * torch.sin(12.9898 * i + 78.233 * j + 0.37 * i * j)


def normal(rows: int, seed: int, dimension: int = 8) -> Tensor:
    return torch.randn(rows, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exactly(mean: Tensor, covariance: Tensor, rows: int = 60) -> Tensor:
    """Rows with exactly these moments."""
    raw = normal(rows, 0, len(mean))
    raw = raw - raw.mean(0)
    white = raw @ torch.linalg.inv(torch.linalg.cholesky(raw.T @ raw / (rows - 1))).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def test_fid_of_gaussians_with_diagonal_covariances() -> None:
    # |m - m'|^2 + sum over axes of (s - s')^2.
    a = exactly(torch.tensor([1.0, 2.0, 3.0]).double(), torch.diag(torch.tensor([1.0, 4.0, 9.0]).double()))
    b = exactly(torch.tensor([0.0, 2.0, 5.0]).double(), torch.diag(torch.tensor([4.0, 4.0, 1.0]).double()))
    assert fid(a, b, extractor="none").value == pytest.approx(5 + 1 + 0 + 4)


def test_fid_of_gaussians_that_do_not_commute() -> None:
    # The trace of the root of A B of 2 x 2 matrices is sqrt(tr(A B) + 2 sqrt(det(A B))).
    a, b = torch.tensor([[2.0, 0.8], [0.8, 1.0]]).double(), torch.tensor([[1.0, -0.5], [-0.5, 3.0]]).double()
    zero, product = torch.zeros(2, dtype=torch.float64), a @ b
    root = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product))))
    expected = float(a.trace() + b.trace()) - 2 * root
    assert fid(exactly(zero, a), exactly(zero, b), extractor="none").value == pytest.approx(expected)


def test_fid_with_fewer_pictures_than_dimensions() -> None:
    few = normal(5, 1, 40)
    assert fid(few, few, extractor="none").value == pytest.approx(0, abs=1e-5)
    assert fid(few, few + 2, extractor="none").value == pytest.approx(160)


def test_fid_and_kid_are_those_of_another_implementation() -> None:
    # torchmetrics 1.9.0: _compute_fid of the moments and poly_mmd.
    found = fid(wave(0, 50), wave(60, 50, 0.3, 1.4), extractor="wave")
    assert (found.value, found.n, found.extractor) == (pytest.approx(1.4359889404), 50, "wave")
    assert _mmd2(wave(0, 50), wave(60, 50, 0.3, 1.4), cubic) == pytest.approx(0.3775289087)


def test_mmd_is_its_definition() -> None:
    x, y = wave(0, 6), wave(20, 5, 0.5)
    for kernel in (cubic, gaussian):
        within = [
            np.mean([float(kernel(s[i : i + 1], s[j : j + 1])) for i in range(len(s)) for j in range(len(s)) if i != j])
            for s in (x, y)
        ]
        across = np.mean([float(kernel(a[None], b[None])) for a in x for b in y])
        assert _mmd2(x, y, kernel) == pytest.approx(sum(within) - 2 * across)


def test_kernels_by_hand() -> None:
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -2.0], [1.0, 2.0]])
    assert cubic(x, y).tolist() == [pytest.approx([0.125, 42.875])]
    assert gaussian(x, y).tolist() == [pytest.approx([math.exp(-0.1), 1.0])]


def test_cmmd_of_shifted_gaussians() -> None:
    # E k of two standard normals a distance s apart: (1 + 2 / w^2)^(-d/2) exp(-s^2 / (2 (w^2 + 2))), w = 10.
    x, y = normal(1500, 1, 4), normal(1500, 2, 4) + 1.0
    expected = 2000 * (1 + 2 / 100) ** -2 * (1 - math.exp(-4 / (2 * 102)))
    found = cmmd(x, y, extractor="none", subsets=Subsets(10))
    assert found.value == pytest.approx(expected, rel=0.1)
    assert found.low is not None
    assert found.high is not None
    assert found.low < expected < found.high


def test_kid_has_no_bias_where_fid_has() -> None:
    kids = [kid(normal(40, k), normal(40, 100 + k), extractor="none", subsets=Subsets(20)) for k in range(40)]
    assert abs(float(np.mean([some.value for some in kids]))) < 0.03
    assert min(some.value for some in kids) < 0
    assert all(some.low is not None and some.high is not None and some.low < 0 < some.high for some in kids)
    assert fid(normal(40, 1), normal(40, 2), extractor="none").value > 0.5


def test_the_error_of_kid_is_the_spread_of_kid() -> None:
    drawn = [
        kid(normal(80, k) + 0.4, normal(80, 500 + k), extractor="none", subsets=Subsets(30, size))
        for size in (1000, 20)
        for k in range(80)
    ]
    for some in (drawn[:80], drawn[80:]):
        spread = float(np.std([figure.value for figure in some]))
        assert float(np.mean([figure.error or 0 for figure in some])) == pytest.approx(spread, rel=0.35)


def test_a_rise_is_paired() -> None:
    unedited, reference = normal(60, 1), normal(60, 2)
    nothing = kid_rise(unedited, unedited, reference, extractor="none")
    assert (nothing.value, nothing.error, nothing.n) == (0, 0, 60)
    edited = unedited + 0.02 * normal(60, 3) + 0.1
    rise, alone = kid_rise(edited, unedited, reference, extractor="none"), kid(edited, reference, extractor="none")
    assert rise.error is not None
    assert alone.error is not None
    assert rise.error < 0.6 * alone.error
    assert rise.value == pytest.approx(alone.value - kid(unedited, reference, extractor="none").value)


def test_figures_name_their_extractor_and_number() -> None:
    figure = kid(normal(30, 1), normal(50, 2), extractor="some network", subsets=Subsets(7, 10))
    fields = figure.to_json()
    assert (fields["metric"], fields["extractor"], fields["n"]) == ("kid (7 subsets of 10)", "some network", 30)
    assert set(fields) == {"metric", "extractor", "value", "n", "error", "low", "high"}
    assert "low" not in Figure("fid", "none", 1.0, 5).to_json()
    seeded = [kid(normal(30, 1), normal(50, 2), extractor="a", subsets=Subsets(seed=seed)) for seed in (1, 1, 2)]
    assert seeded[0] == seeded[1] != seeded[2]
    assert kid(normal(30, 1), normal(50, 2), extractor="a").metric == "kid (100 subsets of 15)"


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(5, 3), torch.zeros(5, 4), "expected features"),
        (torch.zeros(5), torch.zeros(5), "expected features"),
        (torch.zeros(1, 3), torch.zeros(5, 3), "at least"),
        (torch.zeros(0, 3), torch.zeros(0, 3), "at least"),
        (torch.full((5, 3), torch.nan), torch.zeros(5, 3), "finite"),
    ],
)
def test_features_that_fit_no_distance(x: Tensor, y: Tensor, message: str) -> None:
    for distance in (fid, kid, cmmd):
        with pytest.raises(ValueError, match=message):
            distance(x, y, extractor="none")


def test_kid_needs_two_pictures_in_a_subset() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        kid(normal(3, 1), normal(9, 2), extractor="none")
    assert kid(normal(4, 1), normal(9, 2), extractor="none").n == 4


def test_a_rise_needs_pairs() -> None:
    with pytest.raises(ValueError, match="paired"):
        kid_rise(normal(9, 1), normal(8, 1), normal(9, 2), extractor="none")


def test_worse_pictures_of_shapes_are_further_away() -> None:
    extractor, reference = JudgeFeatures(load_judge()), pictures(60, seed=9)
    blurred = [image.filter(ImageFilter.GaussianBlur(2)) for image in pictures(60)]
    features = {"same": pictures(60), "blurred": blurred, "grey": grey(60)}
    against = extractor(reference)
    for distance in (fid, kid, cmmd):
        values = [distance(extractor(some), against, extractor=extractor.name).value for some in features.values()]
        assert values == sorted(values)
        assert values[2] > 2 * values[0]


class Two(nn.Module):
    """Two layers whose activations can be written down: the picture's channels, and the first one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.all, self.first = nn.Identity(), nn.Conv2d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 0]]).view(2, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.first(self.all(pixels))
        return out


def prepare(images: Sequence[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 for image in images])


def test_feature_drift_by_hand() -> None:
    network = Two().eval()
    layers = Layers("two", network, [network.all, network.first], prepare)
    red, green, dim = (Image.new("RGB", (2, 3), colour) for colour in ("#ff0000", "#00ff00", "#800000"))
    # Layer one: orthogonal unit vectors, 2. Layer two: a unit vector and nothing, 1. Brightness alone is no drift.
    drift = feature_drift([red, red, red], [red, green, dim], layers)
    assert drift.tolist() == pytest.approx([0, 1.5, 0])
    assert feature_drift([], [], layers).shape == (0,)
    assert not network.all._forward_hooks


def test_drift_of_shapes_grows_with_the_change() -> None:
    layers, before = judge_layers(load_judge()), pictures(12)
    a_little = [image.filter(ImageFilter.GaussianBlur(0.5)) for image in before]
    a_lot = before[1:] + before[:1]
    means = [float(feature_drift(before, after, layers).mean()) for after in (before, a_little, a_lot)]
    assert means[0] == 0
    assert 0 < means[1] < 0.5 * means[2]


def test_drift_does_not_depend_on_what_else_is_read() -> None:
    layers, before, after = judge_layers(load_judge()), pictures(6), pictures(6, seed=1)
    together = feature_drift(before, after, layers)
    alone = torch.cat([feature_drift([a], [b], layers) for a, b in zip(before, after, strict=True)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("after", [[], [Image.new("RGB", (8, 8))]])
def test_drift_needs_pairs(after: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match="expected pairs"):
        feature_drift(pictures(1), after, judge_layers(load_judge()))
