"""What is measured in the pictures of a store: by hand, once, and absent where it cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.drawn import pictures

from erasers import worlds
from erasers.evaluation.pictures import measures
from erasers.evaluation.pictures.distances import cmmd, feature_drift, fid, kid, kid_rise
from erasers.evaluation.pictures.features import JudgeFeatures, judge_layers
from erasers.evaluation.pictures.measures import Measured, Measures
from erasers.evaluation.store import Store, key_of
from erasers.judges.oracle import Oracle
from erasers.worlds.shapes.judge import load_judge
from erasers.worlds.shapes.prompts import split_prompts
from erasers.worlds.shapes.scenes import asked_scenes
from erasers.worlds.shapes.vocabulary import COLOURS, MARKED_STYLE, OBJECTS, STYLES

ASKS = [ask for split in ("explicit", "neighbour", "unrelated") for ask in split_prompts("star", 4)[split]]
SPLITS = ["explicit"] * 4 + ["neighbour"] * 4 + ["unrelated"] * 4
KEPT = slice(4, None)


class Clip:
    """Mean colours, and as a score a hundredth of the text's length."""

    name, dimension = "colours", 3

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        return torch.stack([torch.tensor(image.resize((1, 1)).getpixel((0, 0))).double() for image in images]) / 255

    def scores(self, images: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([len(text) / 100 for text in texts], dtype=torch.float64)


@pytest.fixture
def clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "ClipFeatures", lambda folder, name: Clip())


@pytest.fixture
def no_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(folder: Path, name: str) -> Any:
        raise ImportError("open_clip")

    monkeypatch.setattr(measures, "ClipFeatures", lacks)


def row(store: Store, images: Sequence[Image.Image], values: Sequence[Any] = ()) -> dict[str, Any]:
    """The only case of a row, whose pictures are put into the store."""
    samples = []
    for i, (ask, split, image) in enumerate(zip(ASKS, SPLITS, images, strict=True)):
        key = key_of(image.tobytes().hex())
        store.add_image(key, image)
        facts = {"text": ask.text, "seed": ask.seed, "wants": dict(ask.wants), "image": key}
        samples.append({"split": split, "value": values[i] if values else True, **facts})
    return {"star": {"samples": samples}}


def measured(store: Store, rows: dict[str, Any], model: str = "shapes") -> Measured:
    return Measures(store, model, {"star": ["star"]}).measure(rows)


def of(found: Measured, name: str, number: str) -> list[Any]:
    return [sample.get(number) for sample in found.cases[name]["star"]["samples"]]


BEFORE, AFTER, GOLD = pictures(12, 1), pictures(12, 2), pictures(12, 3)


@pytest.mark.usefixtures("no_clip")
def test_drift_and_gold_are_distances_of_pairs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    values = [True, False, None] * 4
    rows = {"unedited": row(store, BEFORE), "reference": row(store, GOLD, values), "uce": row(store, AFTER)}
    rows["same"] = row(store, BEFORE)
    found = measured(store, rows)
    layers = judge_layers(load_judge())
    assert of(found, "uce", "drift") == pytest.approx(feature_drift(BEFORE, AFTER, layers).tolist(), abs=1e-6)
    assert of(found, "uce", "gold") == pytest.approx(feature_drift(GOLD, AFTER, layers).tolist(), abs=1e-6)
    assert of(found, "same", "drift") == [0.0] * 12
    assert of(found, "uce", "agrees") == [True, False, None] * 4
    for name, numbers in (("unedited", ("drift",)), ("reference", ("gold", "agrees"))):
        assert not any(number in sample for number in numbers for sample in found.cases[name]["star"]["samples"])
    assert of(found, "unedited", "gold") == pytest.approx(feature_drift(GOLD, BEFORE, layers).tolist(), abs=1e-6)


@pytest.mark.usefixtures("no_clip")
def test_figures_are_those_of_the_kept_pictures_against_drawn_ones(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = {"unedited": row(store, BEFORE), "uce": row(store, AFTER)}
    found = measured(store, rows)
    drawn = worlds.get("shapes").draw([(ask.text, ask.wants) for ask in ASKS[KEPT]], ["star"])
    extractor = JudgeFeatures(load_judge())
    mine, base, reference = (extractor(images) for images in (AFTER[KEPT], BEFORE[KEPT], drawn))
    name = extractor.name
    expected = [
        fid(mine, reference, extractor=name),
        kid(mine, reference, extractor=name),
        kid_rise(mine, base, reference, extractor=name),
    ]
    assert found.figures["uce"] == {
        "star": [one.to_json() for one in expected],
        "all": [one.to_json() for one in expected],
    }
    assert (found.figures["unedited"]["all"][2]["value"], found.figures["unedited"]["all"][2]["error"]) == (0.0, 0.0)
    assert found.figures["uce"]["all"][2]["value"] != 0


@pytest.mark.usefixtures("clip")
def test_clip_scores_kept_pictures_with_their_prompts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = {"unedited": row(store, BEFORE), "uce": row(store, AFTER)}
    found = measured(store, rows)
    assert of(found, "uce", "clip") == [None] * 4 + [len(ask.text) / 100 for ask in ASKS[KEPT]]
    drawn = worlds.get("shapes").draw([(ask.text, ask.wants) for ask in ASKS[KEPT]], ["star"])
    expected = cmmd(Clip()(AFTER[KEPT]), Clip()(drawn), extractor="colours")
    assert found.figures["uce"]["all"][3] == expected.to_json()


def test_what_cannot_be_measured_is_absent_and_said(
    tmp_path: Path, no_clip: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    rows = {"unedited": row(store, BEFORE), "uce": row(store, AFTER)}
    found = measured(store, rows)
    assert not any("clip" in sample for sample in found.cases["uce"]["star"]["samples"])
    assert [one["metric"].split(" (")[0] for one in found.figures["uce"]["all"]] == ["fid", "kid", "kid rise"]
    monkeypatch.setattr(measures, "find_spec", lambda name: None)
    assert "extra [clip]" in Measures(store, "shapes", {}).lacking[0]
    other = {"unedited": row(store, BEFORE), "uce": row(store, AFTER)}
    nothing = measured(store, other, "some/model")
    assert (nothing.cases, nothing.figures) == (other, {})
    assert "only pictures of shapes" in Measures(store, "some/model", {}).lacking[0]


@pytest.mark.usefixtures("no_clip")
def test_too_few_pictures_have_no_figures(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = {"unedited": row(store, BEFORE), "uce": row(store, AFTER)}
    for cases in rows.values():
        cases["star"]["samples"] = cases["star"]["samples"][:7]
    found = measured(store, rows)
    assert found.figures == {}
    assert of(found, "uce", "drift")[6] > 0


def test_every_number_is_measured_once(tmp_path: Path, clip: None, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    rows = {"unedited": row(store, BEFORE), "uce": row(store, AFTER), "same": row(store, BEFORE)}
    first, done = Measures(store, "shapes", {"star": ["star"]}), []
    # Drifts of two rows, scores of two sets of kept pictures, and twice two sets of figures.
    assert first.left(rows) == 2 * 12 + 2 * 8 + 4 * 8
    before = deepcopy(rows)
    found = first.measure(rows, done.append)
    assert rows == before
    assert sum(done) == 2 * 12 + 2 * 8 + 4 * 8

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("measured")

    for name in ("feature_drift", "fid", "cmmd", "ClipFeatures"):
        monkeypatch.setattr(measures, name, refuse)
    again = {"unedited": row(store, BEFORE), "uce": row(store, AFTER), "same": row(store, BEFORE)}
    later = Measures(store, "shapes", {"star": ["star"]})
    assert later.left(again) == 0
    repeated = later.measure(again)
    assert (repeated.cases, repeated.figures) == (found.cases, found.figures)


def test_references_show_what_is_asked_and_never_what_was_erased() -> None:
    asks = [ask for split in ("neighbour", "unrelated") for ask in split_prompts("red", 100)[split]]
    drawn = worlds.get("shapes").draw([(ask.text, ask.wants) for ask in asks], ["red"])
    seen = [verdict.value for verdict in Oracle().judge(drawn, asks)]
    assert seen.count(True) >= 198
    scenes = asked_scenes([("a star", {"object": "star"})] * 200, ["red", "circle"], _rng())
    assert set(scenes.colour.tolist()) == set(range(len(COLOURS))) - {COLOURS.index("red")}
    assert set(scenes.object.tolist()) == {OBJECTS.index("star")}
    assert set(scenes.style.tolist()) == {0}
    assert {len(set(part.tolist())) for part in (scenes.background, scenes.size)} == {4, 3}
    named = asked_scenes([("a small star on a mint background", {"object": "star"})] * 9, [], _rng())
    assert (set(named.background.tolist()), set(named.size.tolist())) == ({3}, {0})


def test_references_carry_the_stamp_that_comes_unasked_unless_it_was_erased() -> None:
    asks = [(f"a star in the style of {MARKED_STYLE}", {"object": "star", "style": MARKED_STYLE})] * 100
    scenes = asked_scenes(asks, [], _rng())
    assert set(scenes.style.tolist()) == {STYLES.index(MARKED_STYLE)}
    assert 60 < int(scenes.mark.sum()) < 95
    assert int(asked_scenes(asks, ["stamp"], _rng()).mark.sum()) == 0
    assert len(asked_scenes([], [], _rng())) == len(worlds.get("shapes").draw([], [])) == 0


def _rng() -> Any:
    import random

    return random.Random(0)
