"""A second world is a folder: erasing, reporting, benchmarking and the leaderboard run on it as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.toy import Toy, make_toy

from erasers import worlds
from erasers.cli.app import run
from erasers.concept import Concepts
from erasers.eraser import Eraser, options_for, preset_for, registry
from erasers.judges import get_judge, list_judges
from erasers.patch import Patch
from erasers.pipeline import load_pipeline
from erasers.worlds import table
from erasers.worlds.shapes import Shapes

TASK = """
name: toy-tiny
version: 1
model: toy
cases: [[star]]
samples: {explicit: 3, synonym: 2, neighbour: 2, unrelated: 2}
sampling: {steps: 2, guidance: 3.0, batch: 4}
judge: oracle/toy
scheme: {pillars: [erasure, robustness, specificity]}
references: {star: nowhere}
attacks:
  prefixes: {attack: random_prefix, k: 2, images: 4, samples: 2, replicate: 1}
  words: {templates: ["a {}"], samples: 2, control: prefixes, replicate: 1}
"""


@pytest.fixture(scope="module", autouse=True)
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toy]:
    """The world, registered."""
    installed = make_toy(tmp_path_factory.mktemp("toy"))
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(installed)
        table._places.cache_clear()
        yield worlds.get("toy")  # type: ignore[misc]
    table._places.cache_clear()


def test_a_registered_world_is_one_of_those_there_are(toy: Toy) -> None:
    assert worlds.list() == ["shapes", "shapes-sd3", "toy"]
    assert worlds.find("toy") is worlds.find(toy.folder) is toy
    assert load_pipeline("toy").unet.config.sample_size == 8
    assert {"oracle/shapes", "oracle/toy", "clip_zeroshot/shapes"} <= set(list_judges())
    assert "clip_zeroshot/toy" not in list_judges()
    assert get_judge("oracle/toy").sees == {"object": ("star", "moon", "ring", "none")}


def test_a_world_that_shares_a_judge_has_none_of_its_own(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "judge", "oracle/shapes")
    assert "oracle/toy" not in list_judges()
    with pytest.raises(ValueError, match="expected a profile of oracle among shapes, got 'toy'"):
        get_judge("oracle/toy")


def test_a_concept_is_erased_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patch, report = tmp_path / "star.safetensors", tmp_path / "report"
    erase = ["--concept", "star", "--method", "uce", "--model", "toy", "--out", str(patch)]
    assert run([*erase, "--report", str(report), "--samples", "2"]) == 0
    assert Patch.load(patch).meta["concepts"][0]["anchor"] == "shape"
    facts = json.loads((report / "summary.json").read_text())
    assert facts["model"] == "toy"
    assert [judge["name"] for judge in facts["judges"]] == ["oracle/toy"]
    assert run(["generate", "a picture of a dog", "--model", "toy", "--out", str(tmp_path / "dog.png")]) == 0
    assert "toy does not know dog" in capsys.readouterr().err
    assert run(["--concept", "stat", "--model", "toy"]) == 2
    assert "toy does not know 'stat'; it knows star, moon, ring (did you mean 'star'?)" in capsys.readouterr().err


def test_a_task_runs_verifies_and_has_a_leaderboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, out, board = tmp_path / "tiny.yaml", tmp_path / "out", tmp_path / "board"
    task.write_text(TASK)
    assert run(["bench", "run", str(task), "--method", "uce", "--out", str(out)]) == 0
    assert "no reference for star here: nowhere is not there" in capsys.readouterr().err
    row = json.loads((out / "toy-tiny@1" / "uce.json").read_text())
    (case,) = row["cases"].values()
    assert case["attacks"]["words"]
    assert {sample["split"] for sample in case["samples"]} == {"explicit", "synonym", "neighbour", "unrelated"}
    assert all("drift" in sample for sample in case["samples"])
    assert {figure["extractor"] for figure in row["figures"]["star"]} == {"toy-judge"}
    results = [str(path) for path in (out / "toy-tiny@1").glob("*.json")]
    assert run(["bench", "verify", "--task", str(task), *results]) == 0
    assert "model: the fingerprint" not in capsys.readouterr().out
    assert run(["bench", "leaderboard", "--task", str(task), *results, "--out", str(board)]) == 0
    assert "toy-tiny" in (board / "leaderboard.md").read_text()


class Suited(Eraser):
    """With settings for embedded models, and for one of them."""

    name = "suited"
    presets = {"suited-embedded": {"ridge": 2.0}, "suited-shapes": {"ridge": 3.0}}
    ridge: float = 1.0

    def fit(self, pipe: Any, concepts: Concepts, **options: Any) -> Patch:
        raise NotImplementedError


def test_a_world_without_a_preset_of_its_own_takes_that_of_embedded_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "eraser_class", lambda name: Suited)
    assert (preset_for("suited", "toy"), options_for("suited", "toy")) == ("suited-embedded", {"ridge": 2.0})
    assert (preset_for("suited", "shapes"), options_for("suited", "shapes")) == ("suited-shapes", {"ridge": 3.0})
    assert (preset_for("suited", "some/model"), options_for("suited", "some/model")) == (None, {})
    assert options_for("suited-embedded", "toy") == {}


class Redrawn(Shapes):
    """Another model of the same pictures."""

    name = "redrawn"


def test_a_world_that_draws_the_pictures_of_another_takes_its_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_places", lambda: {"redrawn": f"{__name__}:Redrawn"})
    monkeypatch.setattr(table, "_made", lambda place: Redrawn())
    monkeypatch.setattr(registry, "eraser_class", lambda name: Suited)
    assert (preset_for("suited", "redrawn"), options_for("suited", "redrawn")) == ("suited-shapes", {"ridge": 3.0})
    monkeypatch.setattr(Suited, "presets", {**Suited.presets, "suited-redrawn": {"ridge": 4.0}})
    assert (preset_for("suited", "redrawn"), options_for("suited", "redrawn")) == ("suited-redrawn", {"ridge": 4.0})
