"""`erase recommend`: the methods for a model and a concept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.families.all import FAMILIES

from erasers.cli.app import run
from erasers.evaluation.recommend.measured import tables


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert run(["recommend", *arguments]) == 0
    return capsys.readouterr().out


def order(text: str) -> list[str]:
    """The methods of the table, in its order."""
    return [line.split()[1] for line in text.splitlines() if re.match(r"\s*=?\d+ ", line)]


def test_a_world_has_the_figures_of_its_own_task(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "--concept", "zorblat", "--model", "shapes")
    assert "model     shapes, on which all was measured" in text
    assert "shapes-standard@2, zorblat (its style)" in text
    assert "chosen on" not in text
    rows = {row.name for row in tables()[0].rows}
    assert set(order(text)) == rows
    best = order(text)[0]
    assert f"next      erase --concept zorblat --model shapes --method {best} --report report" in text
    text = told(capsys, "--concept", "star", "--model", "shapes-sd3", "--no-training")
    assert "settings of some methods were chosen on star" in text
    assert {"esd", "robust_ablation"}.isdisjoint(order(text))
    assert "left out  esd: trains" in text


def test_a_kind_without_figures_has_those_of_all_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "--concept", "star", "--model", "shapes", "--kind", "identity")
    assert "all its concepts (red, stamp, star, zorblat)" in text
    assert "nothing was measured on a concept of kind identity" in text


def test_many_concepts_have_figures_of_many(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "--concept", "star", "--model", "shapes", "--many", "50")
    assert "14 concepts in one patch, without attacks" in text
    assert "each is of 14 at a time; 50 at once were not measured" in text
    assert "were not measured" not in told(capsys, "--concept", "star", "--model", "shapes", "--many", "6")
    text = told(capsys, "--concept", "star", "--model", "shapes-sd3", "--many", "2")
    assert "each is of one at a time; 2 at once were not measured" in text


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("sd1", "measured on shapes, a small model of this family; no large checkpoint was"),
        ("flux", "nothing was measured; the order is that on shapes-sd3, which text enters in the nearest way"),
    ],
)
def test_a_model_of_the_user_is_told_how_near_the_figures_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str, said: str
) -> None:
    FAMILIES[family].build(tmp_path / "made").save_pretrained(tmp_path / "model")
    text = told(capsys, "--concept", "van gogh", "--model", str(tmp_path / "model"), "--white-box")
    assert said in text
    assert "zorblat (its style)" in text
    assert '--concept "van gogh"' in text
    assert "left out  itd: hooks" in text
    assert order(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concept", "star", "--model", "shapes", "--kind", "objekt"], "expected --kind among object"),
        (["--concept", "dragon", "--model", "shapes"], "dragon"),
        (["--concept", "star", "--model", "nowhere/at-all", "--many", "0"], "--many"),
        (["--model", "shapes"], "--concept"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert run(["recommend", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
