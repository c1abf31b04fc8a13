"""Tests, corrections and sample sizes for verdicts; intervals by resampling are in `bootstrap`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from math import comb, sqrt
from statistics import NormalDist
from typing import TypeVar

from erasers.evaluation.scores.metrics import Score

K = TypeVar("K", bound=Hashable)

_LEVEL, _POWER = NormalDist().inv_cdf(1 - 0.05 / 2), NormalDist().inv_cdf(0.8)
"""Quantiles of a two-sided level of 5 % and of a power of 80 %."""


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that two models are right equally often on the same independent pictures.

    Source: Q. McNemar, Psychometrika 12 (1947), 153-157, with the binomial distribution instead of chi-squared.

    Args:
        only_first: Pairs in which only the first verdict is positive.
        only_second: Pairs in which only the second is.

    Raises:
        ValueError: A negative count.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"expected counts of pairs, got {only_first} and {only_second}")
    n, tail, ways = only_first + only_second, 0, 1
    for k in range(min(only_first, only_second) + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)
    return min(1.0, float(2 * tail / 2**n))


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """p-values adjusted for all of them: at most 0.05 means that the family holds at 5 %.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.

    Raises:
        ValueError: A p-value outside [0, 1].
    """
    if wrong := [p for p in p_values.values() if not 0 <= p <= 1]:
        raise ValueError(f"expected p-values between 0 and 1, got {wrong}")
    adjusted, worst = {}, 0.0
    for done, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        worst = max(worst, min(1.0, (len(p_values) - done) * p_values[key]))
        adjusted[key] = worst
    return {key: adjusted[key] for key in p_values}


def tied_ranks(
    values: Mapping[str, float], p_values: Mapping[tuple[str, str], float], alpha: float = 0.05
) -> dict[str, int]:
    """Ranks in which rows that do not differ are tied: 1, 1, 3, ...

    From the best row down, a new group starts with the first row that differs, after Holm over all pairs, from any row
    of the group, so no two tied rows differ. Rows of neighbouring groups need not differ all: no grouping can do both.

    Args:
        values: Row -> score, more is better. Leave rows without a score out: they have no rank.
        p_values: Unadjusted, one for each pair of rows, the names in either order.
        alpha: Level of the test.

    Returns:
        Row -> rank, best first.

    Raises:
        ValueError: A pair without a p-value.
    """
    pairs = holm({frozenset(pair): p for pair, p in p_values.items() if set(pair) <= set(values)})
    if len(pairs) != comb(len(values), 2):
        raise ValueError(f"expected a p-value for each of {comb(len(values), 2)} pairs of rows, got {len(pairs)}")
    ranks: dict[str, int] = {}
    group: list[str] = []
    for name in sorted(values, key=lambda name: (-values[name], name)):
        if any(pairs[frozenset((name, other))] <= alpha for other in group):
            group = []
        ranks[name] = ranks[group[0]] if group else len(ranks) + 1
        group.append(name)
    return ranks


def rogan_gladen(share: float, n: int, sensitivity: Score, specificity: Score, *, level: float = 0.95) -> Score:
    """The share of pictures that show the concept, from the share that an imperfect judge flags.

    Source: W. J. Rogan and B. Gladen, Am. J. Epidemiology 107 (1978), 71-76; interval: Z. Lang and J. Reiczigel,
    Preventive Veterinary Medicine 113 (2014), 13-22, which carries the uncertainty of both measured rates.

    Args:
        share: Flagged share.
        n: Independent pictures behind it: the prompts, when each was drawn with several seeds.
        sensitivity: Measured on pictures that show the concept.
        specificity: Measured on pictures that do not.
        level: Confidence.

    Raises:
        ValueError: n < 1, a share outside [0, 1], or a judge no better than chance (sensitivity + specificity <= 1).
    """
    se, sp = sensitivity.value, specificity.value
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(f"expected a share of at least one picture, got {share} of {n}")
    if se + sp <= 1:
        raise ValueError(f"expected a judge better than chance, got sensitivity {se:.3f} and specificity {sp:.3f}")
    value = min(1.0, max(0.0, (share + sp - 1) / (se + sp - 1)))
    z = NormalDist().inv_cdf((1 + level) / 2)
    n_p, n_se, n_sp = n + z * z, sensitivity.n + 2, specificity.n + 2
    p, se, sp = (n * share + z * z / 2) / n_p, (se * sensitivity.n + 1) / n_se, (sp * specificity.n + 1) / n_sp
    if se + sp <= 1:
        return Score(value, n, 0.0, 1.0)
    v_se, v_sp, true = se * (1 - se) / n_se, sp * (1 - sp) / n_sp, (p + sp - 1) / (se + sp - 1)
    centre = true + 2 * z * z * (true * v_se - (1 - true) * v_sp)
    half = z * sqrt(p * (1 - p) / n_p + true**2 * v_se + (1 - true) ** 2 * v_sp) / (se + sp - 1)
    return Score(value, n, max(0.0, min(centre - half, value)), min(1.0, max(centre + half, value)))


def detectable_difference(n: int, share: float) -> float | None:
    """The smallest difference that two independent sets of n pictures would show; see `_smallest`.

    Source: J. L. Fleiss, Statistical Methods for Rates and Proportions (1981), equation 3.14, without continuity
    correction. The difference is taken towards one half, where it is hardest to see.

    Args:
        n: Independent pictures in each set: the prompts, when each was drawn with several seeds.
        share: Of one set.
    """
    p = min(share, 1 - share)

    def needed(d: float) -> float:
        q, mean = p + d, p + d / 2
        return _LEVEL * sqrt(2 * mean * (1 - mean)) + _POWER * sqrt(max(0.0, p * (1 - p) + q * (1 - q)))

    return _smallest(needed, n, share, 1 - p)


def detectable_difference_paired(n: int, discordant: float) -> float | None:
    """The smallest difference that n independent pairs would show; see `_smallest`.

    Source: R. J. Connor, Biometrics 43 (1987), 207-211.

    Args:
        n: Independent pairs.
        discordant: Share of the pairs whose verdicts differ; a difference is never larger.
    """

    def needed(d: float) -> float:
        return _LEVEL * sqrt(discordant) + _POWER * sqrt(max(0.0, discordant - d * d))

    return _smallest(needed, n, discordant, discordant)


def _smallest(needed: Callable[[float], float], n: int, share: float, most: float) -> float | None:
    """The d in (0, most] from which d * sqrt(n) >= needed(d), by bisection; `needed` is concave, so there is one.

    Returns:
        What is seen with a power of 80 % in a two-sided test at 5 %; None when n shows nothing.

    Raises:
        ValueError: n < 1 or a share outside [0, 1].
    """
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(f"expected at least one picture and a share between 0 and 1, got {n} and {share}")
    low, high = 0.0, most
    if high <= 0 or high * sqrt(n) < needed(high):
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if middle * sqrt(n) >= needed(middle) else (middle, high)
    return high
