"""`erase sae train` and `erase explain`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from support.families.all import FAMILIES

from erasers.cli import app as cli
from erasers.sae.autoencoder import load_sae


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")


QUICK = ("--steps", "30", "--features", "64", "--k", "4", "--batch", "32")


def test_train(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["sae", "train", "--model", "shapes", "--out", "x.safetensors", *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "explained variance" in shown
    sae, meta = load_sae("x.safetensors")
    assert (sae.n, sae.k, meta["target"]) == (64, 4, "text_encoder.encoder.layers.1")
    facts = json.loads(Path("x.json").read_text())
    assert facts["training"]["steps"] == len(facts["curves"]["unexplained"]) == 30
    assert facts["curves"]["unexplained"][-1] < facts["curves"]["unexplained"][0]
    assert Image.open("x.png").width > 500
    Path("prompts.txt").write_text("a star\n\na circle\na star\na ring\n")
    arguments = ["--prompts", "prompts.txt", "--checkpoint", "c", "--activation", "topk"]
    assert cli.run(["sae", "train", "--model", "shapes", "--out", "y.safetensors", *QUICK, *arguments]) == 0
    assert load_sae("y.safetensors")[1]["about"]["prompts"] == 3
    assert not Path("c").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "shapes", "--out", "no/x.safetensors"], "does not exist"),
        (["--model", "shapes", "--out", "x", "--prompts", "none.txt"], "no file"),
        (["--model", "other", "--out", "x"], "no --prompts"),
        (["--model", "shapes", "--out", "x", "--component", "vae"], "among text_encoder, unet"),
        (["--model", "shapes", "--out", "x", "--component", "unet", "--block", "mid"], "such as down_blocks"),
        (["--model", "shapes", "--out", "x", "--block", "mid"], "as a number"),
        (["--model", "shapes", "--out", "x", "--k", "5000"], "k of at most"),
        (["--model", "shapes", "--out", "x", "--activation", "relu"], "activation"),
        (["--model", "shapes", "--out", "x", "--block", "3"], "from 0 to 2"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert cli.run(["sae", "train", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["explain", "--concept", "star", "--model", "shapes", "--out", "map.png"]) == 0
    shown = capsys.readouterr().out
    assert "fire for it alone" in shown
    assert any("star" in line for line in shown.splitlines()[3:9])
    assert Image.open("map.png").width > 800
    assert cli.run(["explain", "--concept", "comet", "--model", "shapes"]) == 2


@pytest.mark.parametrize(
    ("family", "component", "block"), [("sdxl", "text_encoder_2", "0"), ("sd3", "text_encoder_3", "1")]
)
def test_train_for_another_encoder(tmp_path: Path, family: str, component: str, block: str) -> None:
    FAMILIES[family].build(tmp_path / "files").save_pretrained(tmp_path / "model")
    Path("prompts.txt").write_text("a star\na circle\na ring\na moon\nred art\n")
    arguments = ["--model", "model", "--component", component, "--block", block, "--prompts", "prompts.txt"]
    quick = ["--steps", "4", "--features", "16", "--k", "2", "--batch", "4", "--dead-after", "5"]
    assert cli.run(["sae", "train", "--out", "x.safetensors", *arguments, *quick]) == 0
    target = load_sae("x.safetensors")[1]["target"]
    assert target.startswith(component)
    assert target.endswith(f".{block}")
