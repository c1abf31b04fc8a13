"""Scores with intervals, made from verdicts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

from erasers.judges import Verdict


@dataclass(frozen=True)
class Score:
    """A share with its interval.

    Args:
        value: Share of positive verdicts, in [0, 1].
        n: Number of scored pictures.
        low: Lower end of the interval.
        high: Upper end of the interval.
        unscored: Pictures that no judge could score; they are in none of the other numbers.
    """

    value: float
    n: int
    low: float
    high: float
    unscored: int = 0

    def to_json(self) -> dict[str, Any]:
        """`value`, `n`, `low`, `high`, and `unscored` where there are any."""
        fields: dict[str, Any] = {"value": self.value, "n": self.n, "low": self.low, "high": self.high}
        return fields | ({"unscored": self.unscored} if self.unscored else {})


def wilson(k: int, n: int, level: float = 0.95) -> Score:
    """Share k / n with the Wilson score interval.

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927), 209-212.

    Args:
        k: Positive verdicts.
        n: All verdicts.
        level: Confidence, in (0, 1).

    Raises:
        ValueError: n < 1, k outside 0..n, or a level outside (0, 1).
    """
    if n < 1:
        raise ValueError(f"expected at least one verdict, got n = {n}; a score of nothing is absent, not zero")
    if not 0 <= k <= n:
        raise ValueError(f"expected 0 <= k <= n, got k = {k}, n = {n}")
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, weight = k / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * sqrt(share * (1 - share) / n + weight / (4 * n))
    # Rounding would leave the ends a hair inside 0 and 1 where they are exact.
    return Score(share, n, 0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half)


def score(verdicts: Iterable[Verdict]) -> Score | None:
    """Share of positive verdicts among the scored ones; None when none is scored."""
    values = [verdict.value for verdict in verdicts]
    scored = [value for value in values if value is not None]
    if not scored:
        return None
    share = wilson(sum(scored), len(scored))
    return Score(share.value, share.n, share.low, share.high, len(values) - len(scored))
