"""`erase measure`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from support import REPOSITORY

from erasers.cli import app as cli

PATCHES = REPOSITORY / "benchmarks" / "patches"
ESD, FEW_SHOT, ZORBLAT = (str(PATCHES / f"{name}.safetensors") for name in ("esd-star", "few_shot-star", "esd-zorblat"))


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_traces(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["measure", "traces", ESD, FEW_SHOT, "--model", "shapes", "--out", "x.json"]) == 0
    shown = capsys.readouterr().out
    assert "esd-star: unchanged" in shown
    assert "few_shot-star: changed" in shown
    rows = json.loads(Path("x.json").read_text())["rows"]
    facts = rows["few_shot-star"]["concepts"]["star"]["text_encoder"]
    assert facts["groups"]["star"]["changed"] == 10
    assert {"star", "pentagram"} <= set(facts["strongest_column"])
    with Image.open("x.png") as figure:
        assert figure.width > 600


def test_capability(capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--samples", "1", "--steps", "2", "--strengths", "1", "--site", "middle"]
    retrained = ["--retrained", str(REPOSITORY / "benchmarks" / "reference" / "unet-without-star")]
    assert cli.run(["measure", "capability", ESD, "--model", "shapes", "--out", "x.json", *quick, *retrained]) == 0
    assert "esd-star" in capsys.readouterr().out
    measured = json.loads(Path("x.json").read_text())
    assert (measured["concept"], measured["drawn"]["steps"]) == ("star", 2)
    assert list(measured["rows"]) == ["unedited", "retrained", "esd-star"]
    assert list(measured["rows"]["esd-star"]["sites"]) == ["middle"]
    with Image.open("x.png") as figure:
        assert figure.width > 400


@pytest.mark.full
def test_blindspots(capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--samples", "1", "--steps", "2"]
    assert cli.run(["measure", "blindspots", ESD, "--model", "shapes", "--out", "x.json", *quick]) == 0
    assert "other noise" in capsys.readouterr().out
    measured = json.loads(Path("x.json").read_text())
    assert list(measured["rows"]) == ["other noise", "esd-star"]
    assert len(measured["rows"]["esd-star"]["map"]) == 21
    assert len(measured["concepts"]) + len(measured["unseen"]) == 21


@pytest.mark.full
def test_interference(capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--concept", "pentagram", "--samples", "1", "--steps", "2", "--out", "x.json"]
    assert cli.run(["measure", "interference", "uce", "--model", "shapes", *quick]) == 0
    assert "likeness of words" in capsys.readouterr().out
    measured = json.loads(Path("x.json").read_text())
    assert (measured["emitters"], measured["drawn"]["steps"]) == (["star"], 2)
    assert len(measured["rows"]["uce"]["kept"]["star"]) == len(measured["receivers"]) == 21
    with Image.open("x.png") as figure:
        assert figure.width > 400


@pytest.mark.parametrize("command", ["traces", "capability", "blindspots"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([ESD, ESD], "each patch once"),
        ([ESD, "--out", "x.txt"], "ends in .json"),
        ([ESD, "--out", "no/x.json"], "does not exist"),
        ([ESD, "--overwrite"], "is for files; add --out FILE.json"),
        (["nothing.safetensors"], "nothing.safetensors"),
        ([ESD, "--device", "nowhere"], "unknown device"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], command: str, arguments: list[str], message: str) -> None:
    refused(capsys, [command, *arguments, "--model", "shapes"], message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["traces", ESD, "--model", "./no/where"], "no model folder"),
        (["capability", ESD, "--model", "./no/where"], "one of an embedded world (shapes"),
        (["blindspots", ESD, "--model", "./no/where"], "one of an embedded world (shapes"),
        (["capability", ESD, ZORBLAT, "--model", "shapes"], "patches of one concept, got star, zorblat"),
        (["capability", ESD, "--concept", "comet", "--model", "shapes"], "comet"),
        (["capability", ESD, "--model", "shapes", "--strengths", "1,x"], "numbers with commas"),
        (["capability", ESD, "--model", "shapes", "--strengths", "1,0"], "none of them 0"),
        (["capability", ESD, "--model", "shapes", "--strengths", "nan"], "expected a finite number"),
        (["capability", ESD, "--model", "shapes", "--site", "nose"], "among text, attention, middle"),
        (["capability", ESD, "--model", "shapes", "--retrained", "no"], "--retrained no"),
        (["blindspots", ESD, "--model", "shapes", "--retrained", "no"], "--retrained no"),
        (["interference", "uce", "uce", "--model", "shapes"], "each method once"),
        (["interference", "uec", "--model", "shapes"], "unknown method 'uec'"),
        (["interference", "uce", "--model", "./no/where"], "one of an embedded world (shapes"),
        (["interference", "uce", "--model", "shapes", "--concept", "comet"], "comet"),
        (["interference", "uce", "--model", "shapes", "--out", "x.txt"], "ends in .json"),
        (["interference", "uce", "--model", "shapes", "--overwrite"], "is for files; add --out FILE.json"),
    ],
)
def test_more_bad_input(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    refused(capsys, arguments, message)


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert cli.run(["measure", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not list(Path().iterdir())
