"""Training from the `erase` command: what it costs, settings of the embedded model, and going on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.trained import killed_after

from erasers import Patch, get_eraser, load_pipeline, worlds
from erasers.cli import app as cli
from erasers.cli.concepts import build_concepts
from erasers.cli.eraser import build_eraser
from erasers.eraser import options_for
from erasers.files.checkpoint import CheckpointFile
from erasers.worlds.shapes.prompts import concept_for

STAR = ("--concept", "star", "--model", "shapes")
QUICK = ("--set", "iterations=3", "--set", "steps=2", "--set", "pictures=1", "--set", "batch=1")


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


def test_settings_for_the_embedded_model_are_taken_and_told() -> None:
    star = build_concepts(["star"], world=worlds.get("shapes"))
    eraser, note = build_eraser("esd", [], star, "shapes")
    assert note == "settings for the embedded model: esd-shapes"
    assert eraser == get_eraser("esd-shapes")
    assert build_eraser("esd", [], star)[0] == get_eraser("esd")
    assert build_eraser("esd", ["lr=0.5"], star, "shapes")[0] == get_eraser("esd-shapes", lr=0.5)
    # What a preset says itself stands.
    preset = build_eraser("esd-u", [], star, "shapes")[0]
    assert preset == get_eraser("esd-shapes", train_method="u")
    assert options_for("esd-shapes", "shapes") == {}
    assert options_for("uce", "shapes") == {}


def test_a_dry_run_says_what_training_costs_and_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*STAR, "--method", "esd", *QUICK, "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "esd  20 denoiser calls, 3 with gradients, 6 texts encoded" in output
    assert "ms a denoiser call" in output
    assert not list(Path().iterdir())
    assert cli.run([*STAR, "--method", "uce", "--dry-run"]) == 0
    assert "uce trains nothing" in capsys.readouterr().out


def test_a_stopped_training_goes_on_from_its_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = CheckpointFile.__init__
    monkeypatch.setattr(CheckpointFile, "__init__", lambda file, path, identity, _: opened(file, path, identity, 0.0))
    command = [*STAR, "--method", "esd", *QUICK, "--checkpoint", "half", "--out", "star.safetensors"]
    with killed_after(1):
        cli.run(command)
    assert [path.name for path in Path().iterdir()] == ["half"]
    assert cli.run(command) == 0
    assert [path.name for path in Path().iterdir()] == ["star.safetensors"]
    options = {"iterations": 3, "steps": 2, "pictures": 1, "batch": 1}
    whole = get_eraser("esd-shapes", **options).fit(load_pipeline("shapes"), concept_for("star"), progress=False)
    assert Patch.load("star.safetensors").digest == whole.digest


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--method", "uce", "--checkpoint", "x"], "uce does not train, so it has no --checkpoint"),
        (
            ["--method", "esd", "--checkpoint", "no/x"],
            "expected a file in an existing folder as --checkpoint, got no/x",
        ),
        (["--method", "esd", "--set", "iterations=0"], "expected iterations of at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*STAR, *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.strip().splitlines()) == 1
