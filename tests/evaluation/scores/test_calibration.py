import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import erasers.judges
from erasers.evaluation.scores import calibration
from erasers.evaluation.scores.calibration import Calibration, Truth, key, measure, stored
from erasers.evaluation.scores.metrics import wilson
from erasers.judges import Fingerprint, Takes, Verdict, get_judge, list_judges
from erasers.worlds.shapes import vocabulary

WANTS = {"object": "star"}
FILE = Path(erasers.judges.__file__).parent / "calibration.json"


class Scripted:
    """Gives the verdicts it was told to give."""

    name = "script/test"
    fingerprint = Fingerprint({}, {}, None, "as told", "none")
    takes = Takes()
    sees: Mapping[str, Sequence[str]] = {"object": ("star",)}

    def __init__(self, values: Sequence[bool | None]) -> None:
        self.values = values

    def judge(self, images: Sequence[Any], prompts: Sequence[Any]) -> list[Verdict]:
        return [Verdict(value) for value in self.values]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    entry = {"fingerprint": Scripted.fingerprint.digest, "wants": {"object=star": {"n": 4}, "colour+object": {"n": 8}}}
    found = {"script/test": entry}
    monkeypatch.setattr(calibration, "_table", lambda: found)
    return found


def test_shares_of_right_answers_with_their_intervals() -> None:
    shown = [True, True, True, False, None]
    absent = [False] * 7 + [True, None, None]
    truths = [Truth(WANTS, True)] * 5 + [Truth(WANTS, False)] * 10
    found = measure(Scripted(shown + absent), [Image.new("RGB", (1, 1))] * 15, truths)
    assert found.n == 12
    right = wilson(3, 4)
    assert found.sensitivity is not None
    assert (found.sensitivity.value, found.sensitivity.low, found.sensitivity.high) == (
        right.value,
        right.low,
        right.high,
    )
    assert found.sensitivity.unscored == 1
    right = wilson(7, 8)
    assert found.specificity is not None
    assert found.specificity.value == right.value
    assert (found.specificity.low, found.specificity.high) == pytest.approx((right.low, right.high))
    assert found.specificity.unscored == 2
    assert Calibration.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_what_no_picture_says_is_absent() -> None:
    found = measure(Scripted([True, None]), [Image.new("RGB", (1, 1))] * 2, [Truth(WANTS, True), Truth(WANTS, False)])
    assert found.specificity is None
    assert set(found.to_json()) == {"n", "sensitivity"}
    assert Calibration.from_json(found.to_json()) == found


def test_figures_are_found_by_what_is_wanted(table: dict[str, Any]) -> None:
    judge = Scripted([])
    assert key({"object": "star", "colour": "red"}) == "colour+object"
    assert stored(judge, WANTS) == Calibration(None, None, 4)
    assert stored(judge, {"object": "ring", "colour": "red"}) == Calibration(None, None, 8)
    assert stored(judge, {"object": "ring"}) is None
    assert stored(judge, {}) is None


def test_figures_of_another_fingerprint_do_not_count(table: dict[str, Any]) -> None:
    table["script/test"]["fingerprint"] = "0" * 64
    assert stored(Scripted([]), WANTS) is None
    table.clear()
    assert stored(Scripted([]), WANTS) is None


def test_the_oracle_has_been_measured() -> None:
    oracle = get_judge("oracle/shapes")
    for kind, words in {**vocabulary.KINDS, "style": vocabulary.STYLES}.items():
        for word in words:
            found = stored(oracle, {kind: word})
            assert found is not None, "run benchmarks/judges.py"
            assert found.sensitivity is not None
            assert found.specificity is not None
            assert min(found.sensitivity.value, found.specificity.value) >= 0.98
            assert found.n >= 300
    assert stored(oracle, {"object": "star", "colour": "red", "style": "plain"}) is not None


def test_only_what_was_measured_is_stored() -> None:
    table = json.loads(FILE.read_text())
    assert set(table) == {"oracle/shapes", "clip_zeroshot/shapes"} <= set(list_judges())
    assert {len(entry["wants"]) for entry in table.values()} == {26}


@pytest.mark.clip
@pytest.mark.filterwarnings("ignore")
def test_the_clip_of_the_world_has_been_measured() -> None:
    found = stored(get_judge("clip_zeroshot/shapes"), WANTS)
    assert found is not None, "run benchmarks/judges.py"
    assert found.sensitivity is not None
    assert found.sensitivity.value > 0.8
