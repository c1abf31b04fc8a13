"""The script on models of transformers runs on untrained ones, and says what it measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support import REPOSITORY
from support.scripts import benchmark

from erasers.sae.training import SAETraining
from erasers.worlds.shapes.vocabulary import OBJECTS
from erasers.worlds.shapes_janus.train import model as janus
from erasers.worlds.shapes_llava.train import model as llava
from erasers.worlds.training.saving import save_model

MODELS = benchmark("models")


@pytest.mark.full
def test_ear_is_measured_by_split(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_model(janus.build(), janus.processor(), tmp_path / "model")
    arguments = ["ear", "--model", str(tmp_path / "model"), "--samples", "1", "--out", str(tmp_path / "ear.json")]
    MODELS.main([*arguments, "--rows", "ear", "--set", "pairs=1", "--set", "threshold=0", "--set", "rank=2"])
    result = json.loads((tmp_path / "ear.json").read_text())
    splits, row = {"explicit", "synonym", "neighbour", "unrelated"}, result["rows"]["ear"]
    assert result["unedited"].keys() == row["shares"].keys() == splits
    assert row["config"]["rank"] == 2
    assert row["bytes"] > 0


@pytest.mark.full
def test_sauce_is_measured_by_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    save_model(llava.build(), llava.processor(), tmp_path / "model")
    monkeypatch.setattr(MODELS, "PICTURES", 40)
    monkeypatch.setattr(MODELS, "SAE", SAETraining(features=256, k=4, steps=10, prompts=8, auxiliary=0, warmup=1))
    monkeypatch.setattr(MODELS, "OBJECTS", OBJECTS[:2])
    # It names nothing either: half of the pictures are said to show a circle.
    monkeypatch.setattr(
        MODELS, "answers", lambda _, pictures: [("a circle", "a thing")[k % 2] for k in range(len(pictures))]
    )
    arguments = ["sauce", "--model", str(tmp_path / "model"), "--samples", "1", "--out", str(tmp_path / "sauce.json")]
    # An untrained model has no feature for an object: any that fires in one picture has to do.
    MODELS.main([*arguments, "--concept", "circle", "--set", "often=0", "--set", "quiet=0.99"])
    result = json.loads((tmp_path / "sauce.json").read_text())["rows"]["sauce"]
    assert result["text alone, bit for bit"]
    assert list(result["objects"]) == list(OBJECTS[:2])
    for row in result["objects"].values():
        assert all(0 <= row[what]["value"] <= 1 and row[what]["n"] == 1 for what in ("before", "after", "same"))


def test_the_page_has_the_figures_of_sauce() -> None:
    """Stars are named less often, by more than chance; all else is answered as before."""
    result = json.loads((REPOSITORY / "benchmarks/results/shapes-llava-sauce.json").read_text())["rows"]["sauce"]
    objects = result["objects"]
    star = objects.pop("star")
    assert star["after"]["high"] < star["before"]["low"]
    assert result["text alone, bit for bit"]
    assert all(row["same"]["value"] == 1 for row in objects.values())
    page = " ".join((REPOSITORY / "docs/transformers.md").read_text().split())
    before, after = (
        "{value:.0f} % {when} ({of}{low:.0f}-{high:.0f})".format(
            when=when, of=of, **{name: 100 * star[when][name] for name in ("value", "low", "high")}
        )
        for when, of in (("before", "95 % interval "), ("after", ""))
    )
    count = sum(row["same"]["n"] for row in objects.values())
    assert f"Of {star['before']['n']} new stars it names {before} and {after}; all {count} pictures" in page


def test_the_page_has_the_figures_of_ear() -> None:
    """Stars go, by more than chance, where tokens are learned with all before them; of the rest no more than chance."""
    result = json.loads((REPOSITORY / "benchmarks/results/shapes-janus-ear.json").read_text())
    shares = {name: row["shares"] for name, row in result["rows"].items()}
    for split in ("explicit", "synonym"):
        assert shares["ear"][split]["high"] < min(
            result["unedited"][split]["low"], shares["ear-official"][split]["low"]
        )
    for split in ("neighbour", "unrelated"):
        assert shares["ear"][split]["high"] > result["unedited"][split]["low"]
    page = (REPOSITORY / "docs/transformers.md").read_text()
    for name, row in {"unedited": result["unedited"], **shares}.items():
        cells = " | ".join("{value:.0f} ({low:.0f}-{high:.0f})".format(**percent(share)) for share in row.values())
        assert f"{name}` | {cells} |" in page or f"| {name} | {cells} |" in page


def percent(share: dict[str, float]) -> dict[str, float]:
    return {name: 100 * share[name] for name in ("value", "low", "high")}
