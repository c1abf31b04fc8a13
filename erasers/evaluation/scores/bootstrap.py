"""Cluster bootstrap over prompts: several statistics with intervals from the same seeded resamples; numpy only.

The unit of sampling is the prompt: pictures of one prompt with other seeds are not independent. What has nothing to be
computed from is None, never zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[Array], Mapping[str, Array]]
"""Column sums [..., columns] to named statistics [...]."""

RESAMPLES = 2000
_CHUNK = 500_000


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval.

    Args:
        value: The statistic.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Scored pictures (or pairs of them) behind it.
        prompts: Prompts that they belong to.
        unscored: Pictures (or pairs) that could not be scored; they are in none of the other numbers.
    """

    value: float
    low: float
    high: float
    n: int
    prompts: int
    unscored: int = 0

    def to_json(self) -> dict[str, Any]:
        """The fields to six decimals, which other machines reproduce; `unscored` where there are any."""
        numbers: dict[str, Any] = {name: round(getattr(self, name), 6) for name in ("value", "low", "high")}
        fields = numbers | {"n": self.n, "prompts": self.prompts}
        return fields | ({"unscored": self.unscored} if self.unscored else {})


@dataclass(frozen=True)
class Difference(Estimate):
    """First minus second, paired, with its two-sided p-value."""

    p: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """The fields of an estimate and `p`."""
        return super().to_json() | {"p": round(self.p, 6)}


@dataclass(frozen=True, eq=False)
class Drawn:
    """A statistic and its resamples [resamples]."""

    value: float
    draws: Array

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Percentile interval, widened where it would not hold the value itself.

        Percentiles rather than BCa: pillars saturate at 0 and 1, where so many resamples tie with the value that the
        bias correction is undefined.
        """
        finite = self.draws[np.isfinite(self.draws)]
        low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2]) if len(finite) else (self.value, self.value)
        return min(float(low), self.value), max(float(high), self.value)

    def p_value(self) -> float:
        """Two-sided, against zero, from the resamples' standard deviation and the normal distribution.

        A share of 2,000 resamples is never below 1/2,000, too coarse for Holm over the pairs of a long table. Resamples
        that do not vary, such as those of a single prompt, show nothing: 1.
        """
        spread = float(np.nanstd(self.draws))
        return 2 * NormalDist().cdf(-abs(self.value) / spread) if spread else 1.0


def cluster_bootstrap(
    sums: Array,
    statistic: Statistic,
    *,
    strata: Sequence[str] | None = None,
    pseudo: tuple[Array, Array] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Drawn]:
    """Several statistics from the same resamples of prompts.

    Source: Davison and Hinkley, Bootstrap Methods and their Application (1997), sections 2.4, 3.2 and 3.8.

    Args:
        sums: Sums over the pictures of each prompt, [prompts, columns].
        statistic: What is computed from the columns' totals, vectorised over leading axes.
        strata: A name a prompt; prompts are drawn within their stratum. One stratum when None.
        pseudo: See `resample_sums`.
        resamples: How many.
        seed: Of the resampling; the same gives the same numbers.

    Raises:
        ValueError: No prompts, or lengths that differ.
    """
    totals = resample_sums(sums, strata=strata, pseudo=pseudo, resamples=resamples, seed=seed)
    values, draws = statistic(sums.sum(0)), statistic(totals)
    return {name: Drawn(float(value), np.asarray(draws[name])) for name, value in values.items()}


def resample_sums(
    sums: Array,
    *,
    strata: Sequence[str] | None = None,
    pseudo: tuple[Array, Array] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Array:
    """Totals [resamples, columns] over prompts drawn with replacement, as many as there are, within their strata.

    Args:
        sums: [prompts, columns].
        strata: A name a prompt.
        pseudo: Rows [k, columns] and masses [k], e.g. from `pseudo_prompts`: each row is added to every resample with a
            weight of its own, drawn from Gamma(mass), and never to the value. Without them every resample of 0 of n is
            0 of n, an interval of no width. With them the interval of a share of n single pictures is close to the
            Jeffreys interval (Brown, Cai and DasGupta, Statistical Science 16 (2001), 101-133): a resampled count k
            plus Gamma(1/2) has the mean and the variance of Gamma(k + 1/2).
        resamples: How many.
        seed: Of the generator.

    Raises:
        ValueError: No prompts, or lengths that differ.
    """
    names = np.asarray(["" for _ in sums] if strata is None else list(strata))
    if len(sums) < 1 or len(names) != len(sums):
        raise ValueError(f"expected at least one prompt and a stratum for each, got {len(sums)} and {len(names)}")
    rng = np.random.default_rng(seed)
    totals = np.zeros((resamples, sums.shape[1]))
    for name in sorted(set(names.tolist())):
        _add_resamples(totals, sums[names == name], rng)
    if pseudo is not None and len(pseudo[1]):
        totals += rng.gamma(pseudo[1], size=(resamples, len(pseudo[1]))) @ pseudo[0]
    return totals


def _add_resamples(totals: Array, members: Array, rng: np.random.Generator) -> None:
    """Add resamples of `members` [n, columns] to `totals`, as counts times sums, in pieces that stay in the cache."""
    n, step = len(members), max(1, _CHUNK // len(members))
    for start in range(0, len(totals), step):
        rows = min(step, len(totals) - start)
        drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        totals[start : start + rows] += np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n) @ members


def pseudo_prompts(models: int, size: float) -> tuple[Array, Array]:
    """Every joint outcome of binary verdicts on the same picture, one prompt's worth in all.

    Args:
        models: Models that drew the picture; each alone then has half a prompt of either verdict (Jeffreys).
        size: Pictures a prompt.

    Returns:
        Rows [2**models, models + 1], the verdicts and then the count, and their masses, for `resample_sums`.
    """
    rows = np.array([(*outcome, 1.0) for outcome in product((0.0, 1.0), repeat=models)])
    return size * rows, np.full(len(rows), 2.0**-models)


def mean_by_prompt(
    values: Sequence[float | None],
    prompts: Sequence[str],
    *,
    verdicts: bool = True,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate | None:
    """The mean over pictures with its cluster-bootstrap interval; None when none is scored.

    Args:
        values: One a picture; None where it is unscored.
        prompts: The prompt of each picture.
        verdicts: The values are verdicts, which get `pseudo_prompts`. Other numbers get none, so one prompt of them has
            an interval of no width.
        level: Confidence.
        seed: Of the resampling.

    Raises:
        ValueError: Lengths differ, or verdicts that are not 0 or 1.
    """
    sums, pseudo, n = _by_prompt(values, prompts, verdicts)
    if not n:
        return None
    drawn = cluster_bootstrap(sums, lambda total: {"": _ratio(total[..., 0], total[..., -1])}, pseudo=pseudo, seed=seed)
    return Estimate(drawn[""].value, *drawn[""].interval(level), n, len(sums), len(values) - n)


def _by_prompt(
    values: Sequence[float | None], prompts: Sequence[str], verdicts: bool
) -> tuple[Array, tuple[Array, Array] | None, int]:
    """Sums and counts [prompts, 2], pseudo-prompts for verdicts, and the number of scored pictures."""
    if len(values) != len(prompts):
        raise ValueError(f"expected a prompt for each value, got {len(values)} for {len(prompts)}")
    scored = [(prompt, value) for prompt, value in zip(prompts, values, strict=True) if value is not None]
    places = {name: place for place, name in enumerate(sorted({prompt for prompt, _ in scored}))}
    rows = np.array([(value, 1.0) for _, value in scored], dtype=np.float64).reshape(len(scored), 2)
    if verdicts and not np.isin(rows, (0.0, 1.0)).all():
        raise ValueError("expected verdicts, 0 or 1; pass verdicts=False for other numbers")
    sums = np.zeros((len(places), 2))
    np.add.at(sums, [places[prompt] for prompt, _ in scored], rows)
    pseudo = pseudo_prompts(1, len(scored) / len(places)) if verdicts and scored else None
    return sums, pseudo, len(scored)


def _ratio(top: Array, bottom: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(top / bottom)
