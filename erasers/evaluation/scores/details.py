"""Details of scores beside the pillars: means of what was measured in pictures, and shares corrected for the judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from erasers.asks import SPLITS
from erasers.evaluation.scores.bootstrap import Estimate, mean_by_prompt
from erasers.evaluation.scores.calibration import Calibration, key
from erasers.evaluation.scores.metrics import Score
from erasers.evaluation.scores.records import number
from erasers.evaluation.scores.statistics import rogan_gladen

Samples = Mapping[str, Sequence[Mapping[str, Any]]]
"""Case -> samples of a result file."""

MEASURED = ("drift", "clip", "probability")


def details(samples: Samples, calibration: Mapping[str, Mapping[str, Any]]) -> dict[str, Estimate]:
    """What the samples of some cases come to beside their verdicts; what none of them has is absent.

    * `drift/<split>`, `clip/<split>`, `probability/<split>`: means over pictures.
    * `gold/drift`, `gold/agreement`: distance from the pictures of the model that was trained without the concept, and
      share of pictures with its verdict, over all splits.
    * `corrected/<split>`: see `corrected`.

    Args:
        samples: Of the cases.
        calibration: Key -> measured errors of the judge.

    Raises:
        ValueError: A number that is none.
    """
    flat = [(case, sample) for case, mine in samples.items() for sample in mine]
    estimates = {
        f"{name}/{split}": _mean([(case, sample) for case, sample in flat if sample["split"] == split], name)
        for name in MEASURED
        for split in SPLITS
    }
    estimates |= {"gold/drift": _mean(flat, "gold"), "gold/agreement": _mean(flat, "agrees", verdicts=True)}
    estimates |= {f"corrected/{split}": corrected(samples, split, calibration) for split in SPLITS}
    return {name: estimate for name, estimate in estimates.items() if estimate}


def corrected(samples: Samples, split: str, calibration: Mapping[str, Mapping[str, Any]]) -> Estimate | None:
    """The share of pictures of a split that show what is asked, corrected for the judge's measured errors.

    Each case by Rogan and Gladen with the prompts as n; the errors are means over what its prompts want. Cases are then
    weighted by their pictures, their intervals put together as those of independent shares (MOVER: G. Y. Zou and A.
    Donner, Statistics in Medicine 27 (2008), 1693-1702).

    Returns:
        The share; None without scored pictures, or where nothing was measured of the judge for one of the prompts.

    Raises:
        ValueError: A verdict that is none.
    """
    parts = []
    for case, mine in samples.items():
        own = [sample for sample in mine if sample["split"] == split]
        if (share := _mean([(case, sample) for sample in own], "value", verdicts=True)) is None:
            continue
        rates = _rates([sample["wants"] for sample in own if sample["value"] is not None], calibration)
        if rates is None or rates[0].value + rates[1].value <= 1:
            return None
        parts.append((share, rogan_gladen(share.value, share.prompts, *rates)))
    n = sum(share.n for share, _ in parts)
    if not n:
        return None
    value = sum(share.n * right.value for share, right in parts) / n
    below, above = (
        sqrt(sum((share.n * (right.value - end) / n) ** 2 for (share, right), end in zip(parts, ends, strict=True)))
        for ends in ([right.low for _, right in parts], [right.high for _, right in parts])
    )
    prompts, unscored = (sum(getattr(share, name) for share, _ in parts) for name in ("prompts", "unscored"))
    return Estimate(value, value - below, value + above, n, prompts, unscored)


def _mean(samples: Sequence[tuple[str, Mapping[str, Any]]], name: str, *, verdicts: bool = False) -> Estimate | None:
    """The mean of a number over the pictures that could have it; null ones are unscored."""
    have = [(case, sample) for case, sample in samples if name in sample]
    values = [number(sample, name) for _, sample in have]
    prompts = [f"{case}/{sample['text']}" for case, sample in have]
    return mean_by_prompt(values, prompts, verdicts=verdicts)


def _rates(
    wants: Sequence[Mapping[str, str]], calibration: Mapping[str, Mapping[str, Any]]
) -> tuple[Score, Score] | None:
    """Sensitivity and specificity over some prompts; None when one of them has no figures."""
    counts = Counter(map(key, wants))
    known = {name: Calibration.from_json(calibration[name]) for name in counts if name in calibration}
    pairs = [(errors.sensitivity, errors.specificity) for errors in known.values()]
    both = [(first, second) for first, second in pairs if first and second]
    if len(both) < len(counts):
        return None
    weights = [counts[name] / len(wants) for name in known]
    return _mixed([first for first, _ in both], weights), _mixed([second for _, second in both], weights)


def _mixed(scores: Sequence[Score], weights: Sequence[float]) -> Score:
    """The weighted mean of independent shares, with the number of pictures that would give its variance."""
    value, low, high = (
        sum(weight * float(getattr(share, name)) for share, weight in zip(scores, weights, strict=True))
        for name in ("value", "low", "high")
    )
    n = 1 / sum(weight**2 / share.n for share, weight in zip(scores, weights, strict=True))
    return Score(value, round(n), low, high)
