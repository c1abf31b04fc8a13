"""`erase measure`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from support import REPOSITORY

from erasers.cli import app as cli

PATCHES = REPOSITORY / "benchmarks" / "patches"
ESD, FEW_SHOT = (str(PATCHES / f"{name}-star.safetensors") for name in ("esd", "few_shot"))


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


@pytest.mark.parametrize("command", ["traces"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([ESD, ESD], "each patch once"),
        ([ESD, "--out", "x.txt"], "ends in .json"),
        ([ESD, "--out", "no/x.json"], "does not exist"),
        ([ESD, "--overwrite"], "is for files; add --out FILE.json"),
        (["nothing.safetensors"], "nothing.safetensors"),
        ([ESD, "--model", "./no/where"], "no model folder"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], command: str, arguments: list[str], message: str) -> None:
    assert cli.run(["measure", command, "--model", "shapes", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not list(Path().iterdir())
