"""Pillars on synthetic verdicts: the unedited model, a destructive eraser, a null eraser, and what is missing."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pytest

from erasers.evaluation.scores.pillars import (
    OVERALL,
    PILLARS,
    Pillars,
    Rise,
    Scheme,
    compare,
    harmonic_mean,
    measure,
)
from erasers.evaluation.scores.records import Record
from erasers.evaluation.scores.statistics import tied_ranks

BASE = {"explicit": 1.0, "synonym": 0.95, "neighbour": 0.98, "unrelated": 0.98, "utility": 30.0}
ATTACKED = {"attack/soft": 1.0, "attack/words": 0.98}
SCHEME = Scheme(attacks=("soft", "words"), kappa=0.1)
SAME = Rise(0.0, 0.005, 400)
CLIP_ONLY = Scheme(utility=("clip",))


def records(shares: Mapping[str, float], *, prompts: int = 100, seeds: int = 1, seed: int = 0) -> list[Record]:
    """Records with these shares of positive verdicts; attacks are on the explicit prompts."""
    rng, made = random.Random(seed), []
    for split, share in shares.items():
        name = "explicit" if split.startswith("attack/") else split
        for k in range(prompts * seeds):
            value = rng.gauss(share, 3) if split == "utility" else rng.random() < share
            made.append(Record(split, f"{name} {k // seeds}", k, value))
    return made


UNEDITED = records(BASE)
ROW_0 = UNEDITED + records(ATTACKED)
GOOD = records(
    {"explicit": 0.02, "synonym": 0.05, "neighbour": 0.9, "unrelated": 0.97, "utility": 29.5}
    | {"attack/soft": 0.3, "attack/words": 0.1},
    seed=1,
)
DESTRUCTIVE = records(
    {"explicit": 0, "synonym": 0, "neighbour": 0, "unrelated": 0.01, "utility": 12}
    | {"attack/soft": 0, "attack/words": 0},
    seed=2,
)
NULL = records(BASE | {"explicit": 0.99} | ATTACKED, seed=3)


def without(made: list[Record], *splits: str) -> list[Record]:
    return [record for record in made if record.split not in splits]


def test_the_unedited_model_erases_nothing_and_loses_nothing() -> None:
    found = measure(ROW_0, UNEDITED, SCHEME, kid=SAME)
    erasure = found.pillars["erasure"]
    assert (erasure.value, erasure.low, erasure.n) == (0, 0, 200)
    assert 0 < erasure.high < 0.03
    assert found.pillars["robustness"].value == 0
    for name in ("neighbours", "specificity", "utility"):
        assert found.pillars[name].value == found.pillars[name].high == 1
        assert 0.85 < found.pillars[name].low <= 1
    assert found.overall is not None
    assert (found.overall.value, found.overall.low) == (0, 0)
    assert found.overall.high < 0.05
    assert not found.missing


def test_a_destructive_eraser_keeps_nothing() -> None:
    found = measure(DESTRUCTIVE, UNEDITED, SCHEME, kid=Rise(1.0, 0.05, 400))
    assert found.pillars["erasure"].value == found.pillars["robustness"].value == 1
    assert found.pillars["specificity"].value < 0.05
    assert found.pillars["specificity"].high < 0.1
    assert found.pillars["neighbours"].value == 0
    assert found.pillars["utility"].value < 0.25
    assert found.overall is not None
    assert found.overall.value == 0


def test_a_null_eraser_ties_with_the_unedited_model_and_a_good_one_does_not() -> None:
    rows = {"unedited": ROW_0, "null": NULL, "good": GOOD, "destructive": DESTRUCTIVE}
    scores = {name: measure(row, UNEDITED, SCHEME, kid=SAME).overall for name, row in rows.items()}
    pairs = {
        pair: compare(rows[pair[0]], rows[pair[1]], UNEDITED, SCHEME, kids=(SAME, SAME))[OVERALL].p
        for pair in combinations(rows, 2)
    }
    ranks = tied_ranks({name: score.value for name, score in scores.items() if score}, pairs)
    assert ranks == {"good": 1, "null": 2, "unedited": 2, "destructive": 2}


def test_pillars_by_hand() -> None:
    counts = {
        ("explicit", "base"): 8, ("synonym", "base"): 4, ("neighbour", "base"): 8, ("unrelated", "base"): 10,
        ("explicit", "edit"): 2, ("synonym", "edit"): 1, ("neighbour", "edit"): 6, ("unrelated", "edit"): 10,
        ("attack/a", "edit"): 3, ("attack/b", "edit"): 4,
    }  # fmt: skip
    base, edit = (
        [Record(split, str(i), i, i < k) for (split, who), k in counts.items() if who == side for i in range(10)]
        for side in ("base", "edit")
    )
    base += [Record("utility", str(i), i, 20.0) for i in range(10)]
    edit += [Record("utility", str(i), i, 18.0) for i in range(10)]
    found = measure(edit, base, Scheme(kappa=0.5), kid=Rise(0.25, 0.01, 10))
    values = {name: estimate.value for name, estimate in found.pillars.items()}
    utility = (0.9 + np.exp(-0.5)) / 2
    assert values == pytest.approx(
        {"erasure": 0.75, "robustness": 0.6, "neighbours": 0.75, "specificity": 1.0, "utility": utility}
    )
    assert found.overall is not None
    assert found.overall.value == pytest.approx(5 / (1 / 0.75 + 1 / 0.6 + 1 / 0.75 + 1 + 1 / utility))
    assert found.details["attack/a"].value == pytest.approx(0.3)
    assert found.details["unedited/explicit"].value == pytest.approx(0.8)
    assert found.details["utility/clip"].value == pytest.approx(0.9)
    assert list(found.pillars) == list(PILLARS)


def test_the_harmonic_mean_by_hand() -> None:
    assert harmonic_mean([np.array(0.9), np.array(0.6)]) == pytest.approx(0.72)
    assert harmonic_mean([np.array([0.9, 0.0]), np.array([0.9, 1.0])]).tolist() == pytest.approx([0.9, 0.0])


def test_every_interval_holds_its_value_and_stays_a_share() -> None:
    found = measure(GOOD, UNEDITED, SCHEME, kid=Rise(0.02, 0.01, 400))
    for estimate in (*found.pillars.values(), *found.details.values(), found.overall):
        assert estimate is not None
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.low < estimate.high


def test_an_estimate_says_what_is_behind_it() -> None:
    found = measure(GOOD, UNEDITED, SCHEME, kid=Rise(0.02, 0.01, 77))
    behind = {name: (estimate.n, estimate.prompts) for name, estimate in (found.pillars | found.details).items()}
    assert behind["erasure"] == (200, 200)
    assert behind["robustness"] == (200, 100)
    assert behind["neighbours"] == behind["utility"] == behind["attack/soft"] == behind["utility/clip"] == (100, 100)
    assert behind["utility/kid"] == (77, 77)
    assert found.overall is not None
    assert (found.overall.n, found.overall.prompts) == (700, 500)
    kid_alone = measure(GOOD, UNEDITED, Scheme(utility=("kid",), kappa=1), kid=Rise(0.02, 0.01, 77))
    assert kid_alone.pillars["utility"].n == 77


def test_seeds_of_one_prompt_are_no_independent_pictures() -> None:
    def alike(prompts: int, seeds: int) -> float:
        base = [Record("neighbour", f"{k}", s, True) for k in range(prompts) for s in range(seeds)]
        edit = [Record("neighbour", f"{k}", s, k % 4 > 0) for k in range(prompts) for s in range(seeds)]
        estimate = measure(edit, base, Scheme(pillars=("neighbours",))).pillars["neighbours"]
        assert (estimate.value, estimate.n) == (0.75, prompts * seeds)
        return estimate.high - estimate.low

    assert alike(40, 5) > 0.9 * alike(40, 1)
    assert alike(40, 5) > 1.8 * alike(200, 1)


def test_the_order_of_records_is_nothing_and_the_seed_of_resampling_little() -> None:
    shuffled = random.Random(1).sample(GOOD, len(GOOD)), random.Random(2).sample(UNEDITED, len(UNEDITED))
    found = measure(GOOD, UNEDITED, SCHEME, kid=SAME)
    assert found == measure(*shuffled, SCHEME, kid=SAME)
    other = measure(GOOD, UNEDITED, SCHEME, kid=SAME, seed=5)
    assert found != other
    assert found.overall is not None
    assert other.overall is not None
    assert (found.overall.low, found.overall.high) == pytest.approx((other.overall.low, other.overall.high), abs=0.01)


def test_what_is_missing_is_named_and_takes_the_mean_away() -> None:
    cases: list[tuple[list[Record], Rise | None, str, str]] = [
        (without(GOOD, "attack/soft", "attack/words"), SAME, "robustness", "no scored attack: soft, words"),
        (without(GOOD, "attack/soft"), SAME, "robustness", "no scored attack: soft"),
        (without(GOOD, "synonym"), SAME, "erasure", "no scored pictures: synonym"),
        (without(GOOD, "neighbour"), SAME, "neighbours", "no scored pictures: neighbour"),
        (without(GOOD, "utility"), SAME, "utility", "no clip"),
        (GOOD, None, "utility", "no kid"),
        (without(GOOD, "utility"), None, "utility", "no clip and no kid"),
    ]
    for made, kid, pillar, why in cases:
        found = measure(made, UNEDITED, SCHEME, kid=kid)
        assert found.missing == {pillar: why}
        assert set(found.pillars) == set(PILLARS) - {pillar}
        assert found.overall is None
        assert OVERALL not in found.to_json()
    found = measure(without(GOOD, "attack/soft", "attack/words"), UNEDITED, CLIP_ONLY)
    assert found.missing == {"robustness": "no attack was run"}


def test_nothing_at_all_is_missing_not_zero() -> None:
    found = measure([], [], SCHEME)
    assert (found.pillars, found.details, found.overall) == ({}, {}, None)
    assert set(found.missing) == set(PILLARS)


def test_verdicts_that_are_all_unscored_are_missing_not_zero() -> None:
    blind = [Record(r.split, r.prompt, r.seed, None) for r in GOOD]
    found = measure(blind, UNEDITED, SCHEME)
    assert (found.pillars, found.overall) == ({}, None)
    assert set(found.missing) == set(PILLARS)


def test_a_concept_that_the_unedited_model_never_shows_cannot_be_erased() -> None:
    never = records(BASE | {"explicit": 0, "synonym": 0})
    found = measure(GOOD, never, SCHEME, kid=SAME)
    assert found.missing == {"erasure": "the unedited model shows none of it"}


def test_an_unscored_picture_leaves_its_pair_out() -> None:
    base = [Record("unrelated", str(k), k, k < 8) for k in range(10)]
    edit = [Record("unrelated", str(k), k, None if k < 4 else k < 8) for k in range(10)]
    estimate = measure(edit, base, Scheme(pillars=("specificity",))).pillars["specificity"]
    assert (estimate.value, estimate.n, estimate.prompts, estimate.unscored) == (1.0, 6, 6, 4)
    turned = measure(base, edit, Scheme(pillars=("specificity",))).pillars["specificity"]
    assert (turned.value, turned.n) == (1.0, 6)


def test_other_pillars_than_the_schemes_never_enter_the_mean() -> None:
    few = Scheme(pillars=("erasure", "specificity"))
    found = measure(GOOD, UNEDITED, few)
    assert found.overall is not None
    pair = [1 / found.pillars[name].value for name in few.pillars]
    assert found.overall.value == pytest.approx(2 / sum(pair))
    assert "neighbours" in found.pillars
    assert not found.missing


def test_more_attacks_can_only_lower_robustness() -> None:
    weaker = measure(without(GOOD, "attack/soft"), UNEDITED, CLIP_ONLY).pillars["robustness"].value
    assert measure(GOOD, UNEDITED, CLIP_ONLY).pillars["robustness"].value <= weaker


def test_a_task_may_measure_utility_by_one_part() -> None:
    assert measure(GOOD, UNEDITED, CLIP_ONLY).overall is not None
    assert measure(without(GOOD, "utility"), UNEDITED, Scheme(utility=("kid",), kappa=1), kid=SAME).overall is not None


def test_an_edited_model_needs_its_unedited_counterpart() -> None:
    more = [*GOOD, Record("explicit", "another", 1, True)]
    with pytest.raises(ValueError, match="got none of: unedited"):
        measure(more, UNEDITED, SCHEME)
    with pytest.raises(ValueError, match="got none of: unedited"):
        measure(GOOD, without(UNEDITED, "neighbour"), SCHEME)
    # Fewer pictures of the edited model are fine: a run with a limit.
    assert measure(records({"explicit": 0}, prompts=10), UNEDITED, Scheme(pillars=("erasure",))).missing


def test_a_record_must_not_come_twice() -> None:
    with pytest.raises(ValueError, match="got twice: explicit"):
        measure([*GOOD, GOOD[0]], UNEDITED, SCHEME)


def test_a_comparison_is_paired_and_turns_with_its_sides() -> None:
    there = compare(GOOD, ROW_0, UNEDITED, SCHEME, kids=(SAME, SAME))
    back = compare(ROW_0, GOOD, UNEDITED, SCHEME, kids=(SAME, SAME))
    measured = [measure(some, UNEDITED, SCHEME, kid=SAME) for some in (GOOD, ROW_0)]
    for name in PILLARS:
        assert there[name].value == pytest.approx(measured[0].pillars[name].value - measured[1].pillars[name].value)
        assert there[name].value == -back[name].value
    assert there["erasure"].p < 1e-6
    assert there["erasure"].low > 0.9
    assert there["specificity"].p > 0.05


def test_a_comparison_reads_only_what_both_have() -> None:
    found = compare(GOOD, without(NULL, "attack/soft"), UNEDITED, Scheme(utility=("clip",)))
    assert "attack/soft" not in found
    alone = [measure(without(some, "attack/soft"), UNEDITED, CLIP_ONLY).pillars["robustness"] for some in (GOOD, NULL)]
    assert found["robustness"].value == pytest.approx(alone[0].value - alone[1].value)
    with pytest.raises(ValueError, match="got none of: second"):
        compare(GOOD, GOOD[1:], UNEDITED, SCHEME)


def test_a_comparison_of_a_model_with_itself_sees_no_difference() -> None:
    for difference in compare(GOOD, GOOD, UNEDITED, SCHEME, kids=(SAME, SAME)).values():
        assert (difference.value, difference.p) == (0, 1)
        assert difference.low <= 0 <= difference.high


def test_json_is_plain() -> None:
    text = json.dumps(measure(GOOD, UNEDITED, SCHEME, kid=SAME).to_json(), allow_nan=False)
    assert set(json.loads(text)) == {"pillars", "details", "missing", "overall"}
    assert isinstance(measure(GOOD, UNEDITED, SCHEME), Pillars)


@pytest.mark.parametrize(
    ("split", "value"),
    [("attack/", True), ("other", True), ("explicit", 0.5), ("utility", float("nan")), ("attack/soft", 2)],
)
def test_records_that_cannot_be(split: str, value: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        Record(split, "prompt", 0, value)


@pytest.mark.parametrize(
    "fields",
    [
        {"pillars": ("speed",), "kappa": 1.0},
        {"pillars": (), "kappa": 1.0},
        {"pillars": ("erasure", "erasure")},
        {"utility": ("fid",), "kappa": 1.0},
        {"utility": (), "kappa": 1.0},
        {"kappa": None},
        {"kappa": 0.0},
    ],
)
def test_schemes_that_cannot_be(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Scheme(**fields)  # type: ignore[arg-type]
