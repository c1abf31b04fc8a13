"""Scores of result files: recomputed, found wrong where they are, and compared in pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Any

import pytest

from erasers.evaluation.scores import pillars
from erasers.evaluation.scores.pillars import Scheme
from erasers.evaluation.scores.results import read_result, write_result
from erasers.evaluation.scores.scoring import compare, differences, records, rescore, scores, unedited

SCHEME = Scheme(pillars=("erasure", "specificity"))
TASK = {"name": "made-up", "version": 1, "model": "shapes", "scheme": {"pillars": ["erasure", "specificity"]}}
N = 40


def verify(path: Path) -> list[str]:
    """What does not follow from the samples of a file and those of the unedited row beside it."""
    row = read_result(path)
    return differences(row, unedited(row))


def samples(shown: int, kept: int, unscored: int = 0) -> list[dict[str, Any]]:
    """N explicit prompts, the first of which show the concept, and N unrelated ones, the first of which are right."""
    some = [("explicit", i, i < shown) for i in range(N)] + [("unrelated", i, i < kept) for i in range(N)]
    plain = [{"split": split, "text": f"{split} {i}", "seed": i, "value": value} for split, i, value in some]
    for sample in plain[:unscored]:
        sample["value"] = None
    return [sample | {"wants": {}, "image": 64 * "0", "probability": None} for sample in plain]


def write(folder: Path, name: str, cases: dict[str, list[dict[str, Any]]], unedited: dict[str, Any]) -> Path:
    mine, base = ({case: {"samples": some} for case, some in part.items()} for part in (cases, unedited))
    data = {
        "format": 1,
        "task": TASK,
        "library": "0",
        "model": "m",
        "judge": {"name": "oracle/shapes", "fingerprint": "f"},
        "row": {"name": name, "kind": "unedited" if name == "unedited" else "method", "method": None, "options": {}},
        "cases": {case: {"patch": None, "samples": some} for case, some in cases.items()},
        "scores": scores(mine, base, SCHEME),
    }
    write_result(folder / f"{name}.json", data)
    return folder / f"{name}.json"


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, Path]:
    base = {"star": samples(N, N), "red": samples(N, N)}
    made = {
        "unedited": base,
        "good": {"star": samples(2, N), "red": samples(4, N)},
        "bad": {"star": samples(30, N), "red": samples(20, N)},
        "close": {"star": samples(7, N), "red": samples(8, N)},
        "star-only": {"star": samples(2, 30, unscored=1)},
    }
    return {name: write(tmp_path, name, cases, base) for name, cases in made.items()}


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def test_scores_are_those_of_the_pillars_by_case_and_over_all(rows: dict[str, Path]) -> None:
    found = json.loads(rows["good"].read_text())["scores"]
    assert found["cases"]["star"]["pillars"]["erasure"]["value"] == 0.95
    assert found["all"]["pillars"]["erasure"]["value"] == round(1 - 6 / 80, 6)
    assert found["all"]["pillars"]["erasure"]["n"] == 80
    expected = pillars.measure(
        records("star", {"samples": samples(2, N)}), records("star", {"samples": samples(N, N)}), SCHEME
    )
    assert found["cases"]["star"] == expected.to_json()
    only = json.loads(rows["star-only"].read_text())["scores"]
    assert list(only["cases"]) == ["star"]
    assert only["all"] == only["cases"]["star"]
    assert only["all"]["details"]["explicit"]["unscored"] == 1
    row_0 = json.loads(rows["unedited"].read_text())["scores"]["all"]["pillars"]
    assert (row_0["erasure"]["value"], row_0["specificity"]["value"]) == (0.0, 1.0)


def test_what_was_written_is_right(rows: dict[str, Path]) -> None:
    assert [verify(path) for path in rows.values()] == [[]] * 5


def test_every_number_that_is_wrong_is_named(rows: dict[str, Path]) -> None:
    def edit(data: dict[str, Any]) -> None:
        data["scores"]["all"]["pillars"]["erasure"]["low"] -= 0.001
        data["scores"]["cases"]["star"]["details"]["explicit"]["n"] += 1
        del data["scores"]["cases"]["red"]["overall"]

    change(rows["good"], edit)
    found = verify(rows["good"])
    assert [line.partition(" is ")[0] for line in found] == [
        "scores.all.pillars.erasure.low",
        "scores.cases.red.overall",
        "scores.cases.star.details.explicit.n",
    ]


def test_a_sample_that_was_changed_is_found(rows: dict[str, Path]) -> None:
    change(rows["bad"], lambda data: data["cases"]["star"]["samples"][0].update(value=False))
    assert any("scores.cases.star.pillars.erasure.value" in line for line in verify(rows["bad"]))
    change(rows["unedited"], lambda data: data["cases"]["star"]["samples"][1].update(value=False))
    assert verify(rows["good"])


def test_rounding_of_the_last_decimal_is_no_difference(rows: dict[str, Path]) -> None:
    change(rows["good"], lambda data: data["scores"]["all"]["overall"].update(value=_nudged(data)))
    assert verify(rows["good"]) == []


def _nudged(data: dict[str, Any]) -> float:
    return float(data["scores"]["all"]["overall"]["value"]) + 1e-6


def test_files_that_do_not_belong_together_are_refused(rows: dict[str, Path]) -> None:
    change(rows["good"], lambda data: data.update(model="another"))
    with pytest.raises(ValueError, match="with one model, got two"):
        verify(rows["good"])
    with pytest.raises(ValueError, match="another model in"):
        compare(rows["bad"], rows["good"])
    rows["unedited"].unlink()
    with pytest.raises(FileNotFoundError, match="no .*unedited.json"):
        verify(rows["bad"])


def test_scoring_again_follows_the_scheme_and_nothing_else(rows: dict[str, Path]) -> None:
    before = {name: path.read_bytes() for name, path in rows.items()}
    folder = rows["good"].parent
    assert rescore(folder, SCHEME) == sorted(rows.values())
    written = {name: path.read_text() for name, path in rows.items()}
    for name, content in before.items():
        old, new = json.loads(content), json.loads(written[name])
        assert old["scores"] == new["scores"]
        assert old["cases"] == new["cases"]
    rescore(folder, Scheme(pillars=("erasure",)))
    data = json.loads(rows["good"].read_text())
    assert data["task"]["scheme"]["pillars"] == ["erasure"]
    assert data["scores"]["all"]["overall"]["value"] == data["scores"]["all"]["pillars"]["erasure"]["value"]
    assert verify(rows["good"]) == []
    rescore(folder, SCHEME)
    assert {name: path.read_text() for name, path in rows.items()} == written
    with pytest.raises(FileNotFoundError, match="no results in"):
        rescore(folder / "none", SCHEME)


def test_rows_are_compared_in_pairs_and_adjusted(rows: dict[str, Path]) -> None:
    found = {one.name: one for one in compare(rows["good"], rows["bad"])}
    assert list(found) == ["erasure", "specificity", "overall"]
    erasure = found["erasure"]
    assert (erasure.first, erasure.second) == (1 - 6 / 80, 1 - 50 / 80)
    assert erasure.difference.value == pytest.approx(44 / 80)
    assert erasure.p < 0.001
    close = {one.name: one for one in compare(rows["good"], rows["close"])}
    least = min(one.difference.p for one in close.values())
    assert 0 < least < 0.1
    assert min(one.p for one in close.values()) == pytest.approx(3 * least)
    assert found["specificity"].p == 1
    back = compare(rows["bad"], rows["good"])[0]
    assert back.difference.value == pytest.approx(-erasure.difference.value)
    assert all(one.p == 1 for one in compare(rows["good"], rows["good"]))


def test_only_common_cases_are_compared(rows: dict[str, Path], tmp_path: Path) -> None:
    found = {one.name: one for one in compare(rows["star-only"], rows["good"])}
    # One picture is unscored, and left out of both.
    assert found["erasure"].difference.n == N - 1
    base = {"star": samples(N, N), "red": samples(N, N)}
    red = write(tmp_path, "red-only", {"red": samples(1, N)}, base)
    with pytest.raises(ValueError, match="a case in common"):
        compare(rows["star-only"], red)


UTILITY = Scheme(pillars=("erasure", "utility"), utility=("clip", "kid"), kappa=0.1)


def figures(rise: float, error: float = 0.01) -> list[dict[str, Any]]:
    facts = {"extractor": "x", "n": 40}
    return [
        {"metric": "fid", "value": 1.0} | facts,
        {"metric": "kid rise (100 subsets of 20)", "value": rise, "error": error} | facts,
    ]


def rescored(path: Path, clip: float | None, rise: float | None) -> dict[str, Any]:
    """The scores of a row whose unrelated pictures have a CLIP score, and that has figures."""

    def edit(data: dict[str, Any]) -> None:
        for case in data["cases"].values():
            for sample in case["samples"]:
                if clip is not None and sample["split"] == "unrelated":
                    sample["clip"] = clip
        data["figures"] = {name: figures(rise) for name in (*data["cases"], "all")} if rise is not None else {}

    change(path, edit)
    rescore(path.parent, UTILITY)
    found: dict[str, Any] = json.loads(path.read_text())["scores"]["all"]
    return found


def test_utility_follows_from_clip_scores_and_the_rise_of_the_kid(rows: dict[str, Path]) -> None:
    rescored(rows["unedited"], 40.0, 0.0)
    found = rescored(rows["good"], 30.0, 0.1)
    assert found["details"]["utility/clip"]["value"] == 0.75
    assert found["details"]["utility/kid"]["value"] == round(exp(-1), 6)
    assert found["pillars"]["utility"]["value"] == pytest.approx((0.75 + exp(-1)) / 2, abs=1e-6)
    assert found["details"]["clip/unrelated"]["value"] == 30.0
    row_0 = json.loads(rows["unedited"].read_text())["scores"]["all"]
    assert row_0["pillars"]["utility"]["value"] == 1.0
    assert verify(rows["good"]) == []
    change(rows["good"], lambda data: data["figures"]["all"][1].update(value=0.2))
    assert any("scores.all.pillars.utility.value" in line for line in verify(rows["good"]))


def test_a_part_of_utility_that_is_missing_is_named(rows: dict[str, Path]) -> None:
    rescored(rows["unedited"], None, 0.0)
    assert rescored(rows["good"], None, 0.1)["missing"] == {"utility": "no clip"}
    assert rescored(rows["bad"], None, None)["missing"] == {"utility": "no clip and no kid"}


def test_rows_are_compared_with_their_own_rise(rows: dict[str, Path]) -> None:
    for name, clip, rise in (("unedited", 40.0, 0.0), ("good", 40.0, 0.05), ("bad", 40.0, 0.1)):
        rescored(rows[name], clip, rise)
    found = {one.name: one for one in compare(rows["good"], rows["bad"])}
    assert found["utility"].first == pytest.approx((1 + exp(-0.5)) / 2)
    assert found["utility"].difference.value == pytest.approx((exp(-0.5) - exp(-1)) / 2)
    assert found["utility"].p < 0.01
    # The rise of a row over two cases says nothing about one of them.
    rescored(rows["star-only"], 40.0, 0.05)
    change(rows["good"], lambda data: data["figures"].pop("star"))
    assert "utility" not in {one.name for one in compare(rows["star-only"], rows["good"])}


def test_shares_are_corrected_with_what_the_file_says_of_its_judge(rows: dict[str, Path]) -> None:
    rate = {"value": 0.95, "n": 200, "low": 0.9, "high": 0.98}
    for path in rows.values():
        change(path, lambda data: data["judge"].update(calibration={"": {"n": 400} | dict.fromkeys(RATES, rate)}))
    rescore(rows["good"].parent, SCHEME)
    found = json.loads(rows["bad"].read_text())["scores"]["cases"]["star"]["details"]
    assert found["corrected/explicit"]["value"] == pytest.approx((0.75 + 0.95 - 1) / 0.9, abs=1e-6)
    assert [verify(path) for path in rows.values()] == [[]] * 5


RATES = ("sensitivity", "specificity")


def test_a_number_that_is_none_is_refused(rows: dict[str, Path]) -> None:
    change(rows["good"], lambda data: data["cases"]["star"]["samples"][0].update(drift="far"))
    with pytest.raises(ValueError, match="expected a number as 'drift'"):
        verify(rows["good"])
