"""Scores and their intervals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasers.evaluation.scores.metrics import score, wilson
from erasers.judges import Verdict


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # By hand from Wilson's formula with z = 1.959964.
    [(0, 10, 0.0, 0.277533), (5, 10, 0.236593, 0.763407), (10, 10, 0.722467, 1.0), (1, 100, 0.001767, 0.054486)],
)
def test_wilson_by_hand(k: int, n: int, low: float, high: float) -> None:
    found = wilson(k, n)
    assert (found.value, found.n) == (k / n, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_its_share_and_mirrors(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    found, mirror = wilson(k, n), wilson(n - k, n)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert (found.low, found.high) == pytest.approx((1 - mirror.high, 1 - mirror.low))


def test_more_confidence_is_wider() -> None:
    assert wilson(3, 20, level=0.99).high > wilson(3, 20, level=0.9).high


@pytest.mark.parametrize(("k", "n", "level"), [(0, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0), (1, 5, 0.0)])
def test_wilson_refuses(k: int, n: int, level: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        wilson(k, n, level)


def test_unscored_verdicts_are_left_out_and_counted() -> None:
    found = score([Verdict(True), Verdict(None, reason="black"), Verdict(False), Verdict(True)])
    assert found is not None
    assert (found.value, found.n, found.unscored) == (2 / 3, 3, 1)
    assert found.to_json()["unscored"] == 1


def test_a_score_of_nothing_is_absent_not_zero() -> None:
    assert score([]) is None
    assert score([Verdict(None), Verdict(None)]) is None


def test_json_has_the_four_keys() -> None:
    assert list(wilson(1, 2).to_json()) == ["value", "n", "low", "high"]
