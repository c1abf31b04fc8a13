"""`erase audit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY
from support.families.all import FAMILIES

from erasers import Concept, get_eraser, load_pipeline
from erasers.cli import app as cli
from erasers.evaluation.audit import plans

ESD = REPOSITORY / "benchmarks" / "patches" / "esd-star.safetensors"
GOLD = REPOSITORY / "benchmarks" / "reference" / "unet-without-star"
FEW: dict[str, Any] = {
    "words": plans.ATTACKS["words"],
    "cce": ("words_of_chance", {"steps": 1, "batch": 1, "pictures": 1}, {"lr": 0.01}),
}


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two attacks instead of nine, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(plans, "ATTACKS", FEW)


def audit(*arguments: object) -> int:
    return cli.run(["audit", *map(str, arguments)])


@pytest.mark.full
def test_an_audit_is_one_page_with_what_was_tried_and_what_was_not(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--prompts", 1, "--samples", 1, "--budget", "quick"]
    assert audit(ESD, "--model", "shapes", *few, "--retrained", GOLD, "--out", "seen") == 0
    printed = capsys.readouterr().out
    assert "seen/index.html" in printed
    content = json.loads(Path("seen/audit.json").read_text())
    assert [own["attack"] for own in content["attacks"]] == ["words", "cce", "image_prompt"]
    for own in content["attacks"]:
        assert own["edited"]["n"] == own["reference"]["n"] == own["unedited"]["n"] == 1
        assert own["budget"]["images"] >= 2
    assert content["concepts"] == ["star"]
    assert set(content["splits"]) == {"explicit", "synonym", "neighbour", "unrelated"}
    assert content["splits"]["explicit"]["before"] == 1
    assert content["splits"]["explicit"]["retrained"] == 0
    assert str(GOLD) in content["measured"]["retrained"]
    page = Path("seen/index.html").read_text()
    assert page.count("<img") >= 8
    assert "What was not tried" in page
    # What was drawn is not drawn again, and nothing is overwritten unasked.
    assert audit(ESD, "--model", "shapes", *few, "--out", "seen") == 2
    assert "--overwrite" in capsys.readouterr().err
    Path("seen/audit.json").unlink()
    Path("seen/index.html").unlink()
    assert audit(ESD, "--model", "shapes", *few, "--retrained", GOLD, "--out", "seen") == 0
    again = json.loads(Path("seen/audit.json").read_text())
    assert again["attacks"] == content["attacks"]


def test_a_model_of_the_user_is_audited_with_a_judge_of_theirs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of another family, whose only judge here sees nothing of the concept, is refused before any drawing."""
    FAMILIES["sd1"].build(tmp_path / "made").save_pretrained(tmp_path / "model")
    pipe = load_pipeline(str(tmp_path / "model"))
    get_eraser("uce").fit(pipe, Concept("star", anchor="circle")).save(tmp_path / "star.safetensors")
    assert audit("star.safetensors", "--model", tmp_path / "model", "--judge", "none") == 2
    assert "expected a judge" in capsys.readouterr().err
    assert not Path("audit/index.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([ESD, "--budget", "huge"], "expected --budget among quick, standard, thorough"),
        ([ESD, "--retrained", "nowhere"], "expected the folder of a denoiser"),
        ([ESD, "--prompts", "0"], "--prompts"),
        ([ESD, "--device", "nowhere"], "unknown device"),
        (["nothing.safetensors"], "nothing.safetensors"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[object], message: str) -> None:
    assert audit(*arguments, "--model", "shapes") == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not Path("audit/index.html").exists()
