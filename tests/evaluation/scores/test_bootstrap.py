"""Intervals from resampled prompts: against closed forms, against the truth in simulations, and of almost nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from erasers.evaluation.scores.bootstrap import (
    Difference,
    Drawn,
    Estimate,
    cluster_bootstrap,
    mean_by_prompt,
    pseudo_prompts,
    resample_sums,
)


def singles(n: int) -> list[str]:
    return [f"prompt {k}" for k in range(n)]


def found(estimate: Estimate | None) -> Estimate:
    assert estimate is not None
    return estimate


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # The ends of Beta(k + 1/2, n - k + 1/2), to which the lower one of 0 and the upper one of n are exceptions.
    [
        (0, 50, 0.0, 0.04878),
        (1, 50, 0.00216, 0.08966),
        (10, 50, 0.10774, 0.32579),
        (50, 50, 0.95122, 1.0),
        (100, 200, 0.43112, 0.56888),
    ],
)
def test_a_share_of_single_pictures_has_nearly_the_jeffreys_interval(k: int, n: int, low: float, high: float) -> None:
    estimate = found(mean_by_prompt([i < k for i in range(n)], singles(n)))
    assert (estimate.value, estimate.n, estimate.prompts) == (k / n, n, n)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.01)


def test_nothing_of_n_has_an_interval_of_some_width_only_through_the_pseudo_prompts() -> None:
    sums = np.array([[0.0, 1.0]] * 50)
    plain = resample_sums(sums)
    assert (plain[:, 0] == 0).all()
    with_them = resample_sums(sums, pseudo=pseudo_prompts(1, 1))
    assert (with_them[:, 0] > 0).all()
    assert 0.03 < float(np.quantile(with_them[:, 0] / with_them[:, 1], 0.975)) < 0.06


def test_pseudo_prompts_hold_half_a_prompt_of_either_verdict_of_every_model() -> None:
    for models in (1, 2, 3):
        rows, masses = pseudo_prompts(models, size=4)
        assert rows.shape == (2**models, models + 1)
        assert (rows * masses[:, None]).sum(0).tolist() == [*[2.0] * models, 4.0]


def test_a_mean_has_the_normal_interval() -> None:
    values = np.sin(np.arange(400.0) ** 2)
    estimate = found(mean_by_prompt(values.tolist(), singles(400), verdicts=False))
    half = 1.96 * values.std() / 20
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def clustered(rng: np.random.Generator, prompts: int, seeds: int) -> tuple[list[bool], list[str]]:
    """Verdicts whose share 0.3 varies much from prompt to prompt."""
    shares = rng.beta(0.6, 1.4, prompts)
    verdicts = rng.random((prompts, seeds)) < shares[:, None]
    return verdicts.ravel().tolist(), [f"prompt {k}" for k in range(prompts) for _ in range(seeds)]


def held(verdicts: list[bool], prompts: list[str], truth: float) -> bool:
    """Whether the interval of a share, from few resamples, holds the truth."""
    names = sorted(set(prompts))
    sums = np.zeros((len(names), 2))
    np.add.at(sums, [names.index(prompt) for prompt in prompts], np.stack([verdicts, np.ones(len(verdicts))], 1))
    pseudo = pseudo_prompts(1, len(verdicts) / len(names))
    drawn = cluster_bootstrap(sums, lambda total: {"": total[..., 0] / total[..., 1]}, pseudo=pseudo, resamples=300)
    low, high = drawn[""].interval()
    return low <= truth <= high


def test_intervals_hold_the_truth_when_pictures_of_a_prompt_are_alike() -> None:
    rng = np.random.default_rng(1)
    drawn = [clustered(rng, 40, 5) for _ in range(150)]
    assert np.mean([held(verdicts, prompts, 0.3) for verdicts, prompts in drawn]) >= 0.91
    assert np.mean([held(verdicts, singles(200), 0.3) for verdicts, _ in drawn]) <= 0.85


@pytest.mark.parametrize("share", [0.005, 0.02, 0.05])
def test_intervals_hold_the_truth_near_zero(share: float) -> None:
    estimates = [mean_by_prompt([i < k for i in range(100)], singles(100)) for k in range(12)]
    weights = [math.comb(100, k) * share**k * (1 - share) ** (100 - k) for k in range(12)]
    pairs = [(weight, found(some)) for weight, some in zip(weights, estimates, strict=True)]
    assert sum(weight for weight, some in pairs if some.low <= share <= some.high) >= 0.92


def test_several_statistics_come_from_the_same_resamples() -> None:
    sums = np.random.default_rng(0).random((30, 2))
    drawn = cluster_bootstrap(sums, lambda total: {"a": total[..., 0], "b": total[..., 1], "sum": total.sum(-1)})
    assert np.allclose(drawn["a"].draws + drawn["b"].draws, drawn["sum"].draws)
    assert drawn["sum"].value == pytest.approx(sums.sum())


def test_strata_keep_their_numbers_of_prompts() -> None:
    sums, strata = np.eye(3)[[0] * 20 + [1] * 5 + [2]], ["a"] * 20 + ["b"] * 5 + ["c"]
    assert (resample_sums(sums, strata=strata) == [20, 5, 1]).all()
    assert not (resample_sums(sums) == [20, 5, 1]).all()


def test_the_seed_decides_and_the_order_does_not() -> None:
    values, prompts = clustered(np.random.default_rng(3), 30, 3)
    other = list(reversed(values)), list(reversed(prompts))
    assert mean_by_prompt(values, prompts) == mean_by_prompt(values, prompts) == mean_by_prompt(*other)
    assert mean_by_prompt(values, prompts) != mean_by_prompt(values, prompts, seed=1)


def test_chunks_change_nothing_but_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = np.ones((30, 1))
    monkeypatch.setattr("erasers.evaluation.scores.bootstrap._CHUNK", 70)
    assert (resample_sums(sums, resamples=7) == 30).all()


def test_unscored_pictures_are_left_out_and_counted() -> None:
    estimate = found(mean_by_prompt([True, None, False, True], ["a", "a", "b", "c"]))
    assert (estimate.value, estimate.n, estimate.prompts, estimate.unscored) == (2 / 3, 3, 3, 1)
    assert estimate.to_json()["unscored"] == 1
    assert "unscored" not in found(mean_by_prompt([True], ["a"])).to_json()


def test_a_mean_of_nothing_is_absent_not_zero() -> None:
    assert mean_by_prompt([], []) is None
    assert mean_by_prompt([None, None], ["a", "b"]) is None


def test_one_prompt_with_many_seeds_says_little() -> None:
    estimate = found(mean_by_prompt([True] * 90 + [False] * 10, ["a"] * 100))
    assert estimate.low < 0.5


def difference(first: list[bool], second: list[bool], prompts: list[str]) -> Drawn:
    """Share of the first minus that of the second on the same pictures."""
    names = sorted(set(prompts))
    sums = np.zeros((len(names), 3))
    np.add.at(sums, [names.index(prompt) for prompt in prompts], np.stack([first, second, np.ones(len(first))], 1))
    pseudo = pseudo_prompts(2, len(first) / len(names))
    return cluster_bootstrap(sums, lambda total: {"": (total[..., 0] - total[..., 1]) / total[..., 2]}, pseudo=pseudo)[
        ""
    ]


def test_a_difference_is_paired() -> None:
    first, prompts = clustered(np.random.default_rng(5), 60, 4)
    second = [value and k % 3 > 0 for k, value in enumerate(first)]
    drawn = difference(first, second, prompts)
    low, high = drawn.interval()
    assert drawn.value == pytest.approx(np.mean(first) - np.mean(second))
    assert 0 < low < drawn.value < high
    assert drawn.p_value() < 0.001
    alone = found(mean_by_prompt(first, prompts))
    assert high - low < (alone.high - alone.low) / 1.5
    paired = Difference(drawn.value, low, high, len(first), len(set(prompts)), p=drawn.p_value())
    assert paired.to_json()["p"] == round(drawn.p_value(), 6)


def test_models_with_the_same_verdicts_do_not_differ_but_might() -> None:
    verdicts = [True] * 100
    drawn = difference(verdicts, verdicts, singles(100))
    low, high = drawn.interval()
    assert (drawn.value, drawn.p_value()) == (0, 1)
    assert -0.05 < low < 0 < high < 0.05


def test_p_values_are_right_under_no_difference() -> None:
    rng = np.random.default_rng(7)
    small = 0
    for _ in range(120):
        first, second = (rng.random(60) < 0.4).tolist(), (rng.random(60) < 0.4).tolist()
        small += difference(first, second, singles(60)).p_value() <= 0.05
    assert small <= 12


def test_resamples_that_do_not_vary_show_nothing() -> None:
    assert Drawn(1.0, np.ones(10)).p_value() == 1.0
    assert Drawn(0.5, np.full(10, np.nan)[:0]).interval() == (0.5, 0.5)


def test_an_interval_holds_its_value_and_skips_what_is_undefined() -> None:
    assert Drawn(0.0, np.array([0.1, 0.2, np.nan])).interval()[0] == 0.0
    assert Drawn(9.0, np.array([0.1, 0.2, np.nan])).interval()[1] == 9.0
    assert Drawn(0.15, np.array([0.1, 0.2, np.nan])).interval() == pytest.approx((0.1025, 0.1975))


@pytest.mark.parametrize("values", [[True], [0.5, 1.0]])
def test_what_fits_nothing_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        mean_by_prompt(values, ["a", "b"])


def test_sums_without_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        resample_sums(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="a stratum for each"):
        resample_sums(np.zeros((2, 2)), strata=["a"])
