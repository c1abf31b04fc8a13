"""Details beside the pillars, by hand."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest

from erasers.evaluation.scores.bootstrap import mean_by_prompt
from erasers.evaluation.scores.details import corrected, details
from erasers.evaluation.scores.metrics import Score, wilson
from erasers.evaluation.scores.statistics import rogan_gladen

SENSITIVITY, SPECIFICITY = wilson(190, 200), wilson(196, 200)
RATES = {"n": 400, "sensitivity": SENSITIVITY.to_json(), "specificity": SPECIFICITY.to_json()}


def samples(split: str, n: int, shown: int, wants: dict[str, str], **numbers: Any) -> list[dict[str, Any]]:
    facts = {"split": split, "wants": wants, "probability": None, **numbers}
    return [{"text": f"{split} {i}", "seed": i, "value": i < shown, **facts} for i in range(n)]


def test_means_are_over_the_pictures_that_have_a_number() -> None:
    some = samples("neighbour", 4, 4, {})
    for sample, drift in zip(some, (0.1, 0.2, None, 0.6), strict=True):
        sample |= {"drift": drift, "probability": 0.5}
    some += samples("unrelated", 2, 2, {}, clip=30.0)
    found = details({"star": some}, {})
    assert sorted(found) == ["clip/unrelated", "drift/neighbour", "probability/neighbour"]
    drift = found["drift/neighbour"]
    assert (drift.value, drift.n, drift.prompts, drift.unscored) == (pytest.approx(0.3), 3, 3, 1)
    prompts = [f"star/neighbour {i}" for i in range(4)]
    assert drift == mean_by_prompt([0.1, 0.2, None, 0.6], prompts, verdicts=False)
    assert (found["clip/unrelated"].value, found["probability/neighbour"].value) == (30.0, 0.5)


def test_pictures_of_one_prompt_are_resampled_together_and_those_of_two_cases_apart() -> None:
    one = [sample | {"text": "same", "drift": i} for i, sample in enumerate(samples("unrelated", 2, 2, {}))]
    found = details({"star": one, "red": one}, {})["drift/unrelated"]
    assert (found.value, found.n, found.prompts, found.low, found.high) == (0.5, 4, 2, 0.5, 0.5)


def test_gold_is_over_all_splits() -> None:
    some = samples("explicit", 2, 0, {}, gold=0.5, agrees=True) + samples("unrelated", 2, 2, {}, gold=0.1, agrees=False)
    some[3]["agrees"] = None
    found = details({"star": some}, {})
    assert found["gold/drift"].value == pytest.approx(0.3)
    agreement = found["gold/agreement"]
    assert (agreement.value, agreement.n, agreement.unscored) == (pytest.approx(2 / 3), 3, 1)
    # A share of verdicts has an interval even where all agree.
    assert details({"star": some[:2]}, {})["gold/agreement"].low < 1


def test_a_share_is_corrected_for_the_judge() -> None:
    some = {"star": samples("explicit", 50, 10, {"object": "star"})}
    found = corrected(some, "explicit", {"object=star": RATES})
    assert found is not None
    expected = rogan_gladen(0.2, 50, SENSITIVITY, SPECIFICITY)
    assert found.value == pytest.approx((0.2 + 0.98 - 1) / (0.95 + 0.98 - 1)) == pytest.approx(expected.value)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert (found.n, found.prompts) == (50, 50)


def test_cases_are_corrected_apart_and_put_together() -> None:
    some = {
        "star": samples("explicit", 60, 12, {"object": "star"}),
        "red": samples("explicit", 20, 16, {"colour": "red"}),
    }
    found = corrected(some, "explicit", {"object=star": RATES, "colour=red": RATES})
    assert found is not None
    one, other = rogan_gladen(0.2, 60, SENSITIVITY, SPECIFICITY), rogan_gladen(0.8, 20, SENSITIVITY, SPECIFICITY)
    value = 0.75 * one.value + 0.25 * other.value
    below = sqrt((0.75 * (one.value - one.low)) ** 2 + (0.25 * (other.value - other.low)) ** 2)
    assert (found.value, found.low) == (pytest.approx(value), pytest.approx(value - below))
    assert found.n == 80


def test_errors_are_means_over_what_is_wanted() -> None:
    arrows = [one | {"text": f"arrow {i}"} for i, one in enumerate(samples("unrelated", 10, 8, {"object": "arrow"}))]
    some = {"star": samples("unrelated", 30, 24, {"object": "ring"}) + arrows}
    worse = {"n": 400, "sensitivity": wilson(180, 200).to_json(), "specificity": wilson(196, 200).to_json()}
    found = corrected(some, "unrelated", {"object=ring": RATES, "object=arrow": worse})
    assert found is not None
    assert found.value == pytest.approx((0.8 + 0.98 - 1) / (0.75 * 0.95 + 0.25 * 0.9 + 0.98 - 1))
    n = round(1 / (0.75**2 / 200 + 0.25**2 / 200))
    expected = rogan_gladen(0.8, 40, Score(0.9375, n, 0, 1), Score(0.98, n, 0, 1))
    assert found.low == pytest.approx(expected.low)


def test_without_figures_of_the_judge_nothing_is_corrected() -> None:
    some = {"star": samples("explicit", 5, 2, {"object": "star"}), "red": samples("explicit", 5, 2, {"colour": "red"})}
    assert corrected(some, "explicit", {"object=star": RATES}) is None
    assert corrected(some, "explicit", {"object=star": RATES, "colour=red": {"n": 0}}) is None
    assert corrected(some, "synonym", {"object=star": RATES, "colour=red": RATES}) is None
    # No better than chance: nothing can be said.
    chance = {"n": 400, "sensitivity": wilson(100, 200).to_json(), "specificity": wilson(100, 200).to_json()}
    assert corrected({"star": some["star"]}, "explicit", {"object=star": chance}) is None


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a number as 'drift', got 'far'"):
        details({"star": samples("unrelated", 1, 1, {}, drift="far")}, {})
