"""Tests, corrections and sample sizes: by hand, against published figures, and in simulations."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from erasers.evaluation.scores.metrics import Score, wilson
from erasers.evaluation.scores.statistics import (
    detectable_difference,
    detectable_difference_paired,
    holm,
    mcnemar,
    rogan_gladen,
    tied_ranks,
)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    # By hand: twice the binomial tail over 2**n.
    [(0, 0, 1.0), (0, 5, 2 / 32), (1, 4, 12 / 32), (3, 12, 2 * 576 / 2**15), (3, 3, 1.0), (4900, 5100, 0.0465855)],
)
def test_mcnemar(only_first: int, only_second: int, p: float) -> None:
    assert mcnemar(only_first, only_second) == pytest.approx(p, abs=1e-7)
    assert mcnemar(only_second, only_first) == mcnemar(only_first, only_second)


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="expected counts"):
        mcnemar(-1, 2)


def test_holm_by_hand() -> None:
    adjusted = holm({"d": 0.005, "a": 0.01, "b": 0.04, "c": 0.03})
    assert adjusted == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert list(adjusted) == ["d", "a", "b", "c"]
    assert holm({}) == {}
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_holm_refuses_what_is_no_p_value() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm({"a": 1.2})


def test_rows_that_do_not_differ_share_a_rank() -> None:
    values = {"worst": 0.1, "good": 0.8, "best": 0.9}
    far = {("best", "worst"): 1e-6, ("worst", "good"): 1e-5}
    assert tied_ranks(values, far | {("good", "best"): 0.3}) == {"best": 1, "good": 1, "worst": 3}
    assert tied_ranks(values, far | {("good", "best"): 0.001}) == {"best": 1, "good": 2, "worst": 3}


def test_ranks_count_all_comparisons() -> None:
    values = {"a": 0.9, "b": 0.8, "c": 0.7}
    assert tied_ranks(values, {("a", "b"): 0.04, ("a", "c"): 0.04, ("b", "c"): 0.04}) == dict.fromkeys(values, 1)
    assert tied_ranks({"a": 0.9, "b": 0.8}, {("a", "b"): 0.04}) == {"a": 1, "b": 2}


def test_no_two_tied_rows_differ() -> None:
    # a and b, b and c tie, a and c differ.
    values, p_values = {"a": 0.9, "b": 0.8, "c": 0.7}, {("a", "b"): 0.5, ("b", "c"): 0.5, ("a", "c"): 0.001}
    assert tied_ranks(values, p_values) == {"a": 1, "b": 1, "c": 3}


def test_rows_without_a_score_have_no_rank() -> None:
    assert tied_ranks({"a": 0.9, "b": 0.8}, {("a", "b"): 0.5, ("a", "gone"): 0.0}) == {"a": 1, "b": 1}
    assert tied_ranks({}, {}) == {}
    assert tied_ranks({"a": 0.9}, {}) == {"a": 1}


def test_every_pair_needs_a_p_value() -> None:
    with pytest.raises(ValueError, match="each of 3 pairs"):
        tied_ranks({"a": 0.9, "b": 0.8, "c": 0.7}, {("a", "b"): 0.5})


def test_a_perfect_judge_needs_no_correction() -> None:
    sure = Score(1.0, 10**9, 1.0, 1.0)
    corrected, plain = rogan_gladen(0.2, 100, sure, sure), wilson(20, 100)
    assert corrected.value == pytest.approx(0.2)
    # Agresti-Coull, which is centred where Wilson's interval is and a little wider.
    assert (corrected.low, corrected.high) == pytest.approx((0.1327, 0.2895), abs=1e-3)
    assert corrected.low < plain.low < plain.high < corrected.high


def test_a_correction_by_hand() -> None:
    assert rogan_gladen(0.3, 200, wilson(90, 100), wilson(80, 100)).value == pytest.approx(0.1 / 0.7)


def test_corrected_intervals_hold_the_truth() -> None:
    rng, held, naive = np.random.default_rng(2), 0, 0
    for _ in range(500):
        se, sp = wilson(int(rng.binomial(80, 0.9)), 80), wilson(int(rng.binomial(80, 0.93)), 80)
        k = int(rng.binomial(200, 0.1 * 0.9 + 0.9 * 0.07))
        corrected, plain = rogan_gladen(k / 200, 200, se, sp), wilson(k, 200)
        assert 0 <= corrected.low <= corrected.value <= corrected.high <= 1
        held += corrected.low <= 0.1 <= corrected.high
        naive += plain.low <= 0.1 <= plain.high
    assert held >= 465
    assert naive <= 400


@pytest.mark.parametrize(("share", "value"), [(0.01, 0.0), (0.99, 1.0)])
def test_a_correction_stays_a_share(share: float, value: float) -> None:
    corrected = rogan_gladen(share, 100, wilson(80, 100), wilson(90, 100))
    assert corrected.value == value
    assert 0 <= corrected.low <= corrected.value <= corrected.high <= 1


def test_a_judge_that_was_hardly_measured_says_nothing() -> None:
    corrected = rogan_gladen(0.5, 100, wilson(1, 1), wilson(1, 9))
    assert (corrected.low, corrected.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("share", "n", "hits", "message"),
    [(0.5, 100, 50, "better than chance"), (1.5, 100, 90, "expected a share"), (0.5, 0, 90, "at least one")],
)
def test_corrections_that_cannot_be(share: float, n: int, hits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rogan_gladen(share, n, wilson(hits, 100), wilson(50, 100))


@pytest.mark.parametrize(
    ("n", "share", "difference"),
    # Textbook sample sizes an arm for 80 % power at 5 %: .10 against .15, .25 against .30, .50 against .60.
    [(686, 0.10, 0.05), (1251, 0.25, 0.05), (1251, 0.75, 0.05), (388, 0.50, 0.10)],
)
def test_detectable_difference(n: int, share: float, difference: float) -> None:
    assert detectable_difference(n, share) == pytest.approx(difference, abs=1e-4)


@lru_cache
def shown(only_first: int, only_second: int) -> bool:
    return mcnemar(only_first, only_second) <= 0.05


def test_paired_differences_are_detected_as_often_as_promised() -> None:
    n, discordant = 400, 0.2
    difference = detectable_difference_paired(n, discordant)
    assert difference is not None
    unpaired = detectable_difference(n, 0.5)
    assert unpaired is not None
    assert difference < unpaired
    shares = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
    draws = np.random.default_rng(0).multinomial(n, shares, size=3000)
    power = np.mean([shown(int(a), int(b)) for a, b, _ in draws])
    # The exact test is a little conservative.
    assert 0.74 <= power <= 0.82


def test_what_no_difference_would_show_is_absent() -> None:
    assert detectable_difference(2, 0.5) is None
    assert detectable_difference_paired(200, 0.01) is None
    assert detectable_difference_paired(200, 0.0) is None


@pytest.mark.parametrize("arguments", [(0, 0.5), (10, 1.5)])
def test_sizes_that_cannot_be(arguments: tuple[int, float]) -> None:
    for function in (detectable_difference, detectable_difference_paired):
        with pytest.raises(ValueError, match="expected at least one"):
            function(*arguments)
