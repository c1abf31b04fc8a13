"""How far apart pictures are: FID, KID and CMMD between sets, drift between pairs drawn with the same noise.

Every figure names its extractor and its number of pictures; without them it cannot be compared with another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from erasers.evaluation.pictures.features import Layers

if TYPE_CHECKING:
    from PIL import Image

_Z = 1.959964


@dataclass(frozen=True)
class Figure:
    """A number about pictures.

    Args:
        metric: What it is, with its settings.
        extractor: Name of the network that it was read from.
        value: The number.
        n: Pictures in the smaller set, or pairs.
        error: Standard error; None where there is none to be had.
        low: Lower end of the 95 % interval; likewise.
        high: Upper end of it.
    """

    metric: str
    extractor: str
    value: float
    n: int
    error: float | None = None
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields that are there, numbers to six significant digits."""
        return {
            name: float(f"{value:.6g}") if isinstance(value, float) else value
            for name, value in vars(self).items()
            if value is not None
        }


def fid(features: Tensor, reference: Tensor, *, extractor: str) -> Figure:
    """Frechet distance between Gaussians fitted to two sets of features.

    Source: M. Heusel et al., arXiv:1706.08500, equation 6. The trace of the square root of A B is that of the symmetric
    root(A) B root(A). It is biased upwards, more so with fewer pictures: compare at equal n only, and prefer the KID.

    Args:
        features: [n, d].
        reference: [m, d].
        extractor: Name of what made both.

    Raises:
        ValueError: Fewer than two pictures in a set, or other dimensions.
    """
    n = min(_check(features, reference))
    (mean, a), (other_mean, b) = _moments(features), _moments(reference)
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    # Rounding makes eigenvalues that are zero slightly negative.
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    return Figure("fid", extractor, float((mean - other_mean).square().sum() + a.trace() + b.trace() - 2 * cross), n)


@dataclass(frozen=True)
class Subsets:
    """Rows of two sets, drawn again and again.

    Args:
        count: How many times.
        size: Pictures of a subset; half of the smaller set where that is less.
        seed: Of the draws.
    """

    count: int = 100
    size: int = 1000
    seed: int = 0

    def mean(
        self, metric: str, extractor: str, sizes: tuple[int, int], statistic: Callable[[Tensor, Tensor], float]
    ) -> Figure:
        """Mean of a statistic of drawn rows, with the error of all pictures and a normal interval.

        Source: J. Shao and C. F. J. Wu, Annals of Statistics 17 (1989), 1176-1197 (delete-d jackknife): the variance
        over subsets times size / (n - size). The few subsets add the error of their mean.

        Args:
            metric: What it is.
            extractor: Name of the network that the rows come from.
            sizes: n and m, rows of the two sets.
            statistic: Of the numbers of some rows of the one and of some of the other.
        """
        n = min(sizes)
        generator, size = torch.Generator().manual_seed(self.seed), min(self.size, n // 2)

        def rows(count: int) -> Tensor:
            return torch.randperm(count, generator=generator)[:size]

        drawn = [statistic(rows(sizes[0]), rows(sizes[1])) for _ in range(self.count)]
        values = torch.tensor(drawn, dtype=torch.float64)
        value, variance = float(values.mean()), float(values.var())
        error = sqrt(variance * (size / (n - size) + 1 / self.count))
        name = f"{metric} ({self.count} subsets of {size})"
        return Figure(name, extractor, value, n, error, value - _Z * error, value + _Z * error)


USUAL = Subsets()


def kid(features: Tensor, reference: Tensor, *, extractor: str, subsets: Subsets = USUAL) -> Figure:
    """Unbiased squared MMD with the kernel (x y / d + 1)^3, a mean over subsets.

    Source: M. Binkowski et al., arXiv:1801.01401, section 4. It may be slightly negative.

    Args:
        features: [n, d].
        reference: [m, d].
        extractor: Name of what made both.
        subsets: Over which it is a mean.

    Raises:
        ValueError: Fewer than four pictures in a set, or other dimensions.
    """
    sizes = _check(features, reference, least=4)
    return subsets.mean("kid", extractor, sizes, lambda i, j: _mmd2(features[i], reference[j], cubic))


def kid_rise(
    edited: Tensor, unedited: Tensor, reference: Tensor, *, extractor: str, subsets: Subsets = USUAL
) -> Figure:
    """KID of the edited model minus that of the unedited one, over the same subsets of prompts and of the reference.

    Pairing makes its error much smaller than those of the two; of a model and itself it is exactly 0.

    Args:
        edited: [n, d].
        unedited: [n, d], a row for the same prompt and seed as in `edited`.
        reference: [m, d].
        extractor: Name of what made all.
        subsets: As for `kid`.

    Raises:
        ValueError: As for `kid`, or rows that are not paired.
    """
    if edited.shape != unedited.shape:
        raise ValueError(f"expected paired features, got {tuple(edited.shape)} and {tuple(unedited.shape)}")

    def rise(i: Tensor, j: Tensor) -> float:
        return _mmd2(edited[i], reference[j], cubic) - _mmd2(unedited[i], reference[j], cubic)

    return subsets.mean("kid rise", extractor, _check(edited, reference, least=4), rise)


def cmmd(features: Tensor, reference: Tensor, *, extractor: str, subsets: Subsets = USUAL) -> Figure:
    """1000 times the unbiased squared MMD of unit-length CLIP features with a Gaussian kernel of width 10.

    Source: S. Jayasumana et al., arXiv:2401.09603, section 4. Differs from the official code, which keeps the diagonal
    of the kernel: that is higher by about 1000 (1 - mean kernel) (1/n + 1/m), and never negative.

    Args:
        features: [n, d].
        reference: [m, d].
        extractor: Name of what made both.
        subsets: As for `kid`.

    Raises:
        ValueError: As for `kid`.
    """
    sizes = _check(features, reference, least=4)
    return subsets.mean("cmmd", extractor, sizes, lambda i, j: 1000 * _mmd2(features[i], reference[j], gaussian))


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """Kernel (x y / d + 1)^3 of [n, d] and [m, d]: [n, m]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(x: Tensor, y: Tensor, width: float = 10.0) -> Tensor:
    """Kernel exp(-|x - y|^2 / (2 width^2)) of [n, d] and [m, d]: [n, m]."""
    squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return torch.exp(-squared.clamp(min=0) / (2 * width**2))


def feature_drift(before: Sequence[Image.Image], after: Sequence[Image.Image], layers: Layers) -> Tensor:
    """Distance of paired pictures, 0 (the same) to 4: [n].

    The squared distance of activations that have length 1 across channels, a mean over positions and layers.
    Source: R. Zhang et al., LPIPS, arXiv:1801.03924, equation 1, with equal weights instead of learned ones.

    Raises:
        ValueError: Lengths or sizes differ.
    """
    _check_pairs(before, after)
    drifts = []
    for a, b in zip(before, after, strict=True):
        pairs = zip(layers(a), layers(b), strict=True)
        by_layer = [(normalize(x, dim=0) - normalize(y, dim=0)).square().sum(0).mean() for x, y in pairs]
        drifts.append(float(torch.stack(by_layer).mean()))
    return torch.tensor(drifts, dtype=torch.float64)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] and covariance [d, d]."""
    mean = features.double().mean(0)
    centred = features.double() - mean
    return mean, centred.T @ centred / (len(features) - 1)


def _mmd2(x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Unbiased squared maximum mean discrepancy; A. Gretton et al., JMLR 13 (2012), 723-773, equation 3."""
    x, y, n, m = x.double(), y.double(), len(x), len(y)
    within = [(k.sum() - k.trace()) / (s * (s - 1)) for k, s in ((kernel(x, x), n), (kernel(y, y), m))]
    return float(within[0] + within[1] - 2 * kernel(x, y).mean())


def _check(features: Tensor, reference: Tensor, least: int = 2) -> tuple[int, int]:
    """The sizes of the sets."""
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(f"expected features [n, d] and [m, d], got {list(features.shape)}, {list(reference.shape)}")
    sizes = len(features), len(reference)
    if min(sizes) < least:
        raise ValueError(f"expected at least {least} pictures in each set, got {len(features)} and {len(reference)}")
    if not (features.isfinite().all() and reference.isfinite().all()):
        raise ValueError("expected finite features, got NaN or infinity; look at the pictures and at the extractor")
    return sizes


def _check_pairs(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> None:
    if [image.size for image in before] != [image.size for image in after]:
        raise ValueError(f"expected pairs of pictures of one size, got {len(before)} and {len(after)} pictures")
