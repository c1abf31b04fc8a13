"""`erase --recipe`: the page's examples, a whole run, and what is refused in one line."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
from support import REPOSITORY

from erasers import Patch
from erasers.cli import app as cli
from erasers.methods.leco import LECO, read_recipe

PAGE = (REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```(yaml|toml)\n(.*?)```", PAGE, re.DOTALL)
QUICK = ("--model", "shapes", "--concept", "star", "--set", "iterations=2", "--set", "steps=2")


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


def recipe(text: str = "- {target: star, batch_size: 2}", name: str = "recipe.yaml") -> str:
    Path(name).write_text(textwrap.dedent(text))
    return name


def test_the_page_is_a_screen_and_shows_all_three() -> None:
    assert len(PAGE.splitlines()) <= 60
    assert [kind for kind, _ in EXAMPLES] == ["yaml", "yaml", "toml"]


@pytest.mark.parametrize(("kind", "text"), EXAMPLES)
def test_the_examples_of_the_page_are_counted(kind: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = re.sub(r"resolution: 512.*|van gogh|a (quiet |crowded )?street|a house", lambda match: words(match[0]), text)
    assert cli.run(["--recipe", recipe(text, f"recipe.{kind}"), *QUICK, "--dry-run"]) == 0
    assert "leco  " in capsys.readouterr().out
    assert not list(Path().glob("*.safetensors"))


def words(found: str) -> str:
    """In words of the embedded model, at its size."""
    return {"a house": "ring", "a quiet street": "moon", "a street": "circle"}.get(
        found, "" if "resolution" in found else "star"
    )


def test_a_recipe_leaves_a_patch_of_its_training(capsys: pytest.CaptureFixture[str]) -> None:
    job = [
        "config: {process: [{type: concept_slider, device: cuda,",
        "train: {steps: 2, batch_size: 1}, network: {linear: 2},",
    ]
    job.append("slider: {positive_prompt: circle, negative_prompt: star, target_class: ring}}]}")
    assert cli.run(["--recipe", recipe("\n".join(job)), "--model", "shapes", "--set", "steps=2"]) == 0
    said = capsys.readouterr()
    assert "keys of the recipe without a meaning here: config.process[0].device" in said.err
    assert "--anchor" not in said.out + said.err
    patch = Patch.load("star-leco.safetensors")
    eraser: LECO = read_recipe("recipe.yaml").eraser(steps=2)
    assert patch.meta["config"]["rank"] == eraser.rank == 2
    assert patch.meta["concepts"][0]["name"] == "star"
    assert patch.meta["concepts"][0]["anchor"] == ""


@pytest.mark.parametrize(
    ("text", "arguments", "told"),
    [
        ("- {target: star}", ["--method", "esd"], "--recipe says what is trained and how; leave out --method"),
        ("- {target: star}", ["--set", "eta=1"], "a recipe has no option 'eta'; it has everyday, iterations"),
        ("- {target: star}", ["--set", "steps=much"], "expected steps as a whole number, got 'much'"),
        ("- {target: star}", ["--out", "recipe.yaml"], "recipe.yaml"),
        ("- {target: star, pace: 3}", [], "recipe.yaml: unknown keys: prompt 1.pace"),
        ("- {target: a painting by me}", [], "shapes does not know"),
        ("- {target: '', positive: ''}", [], "no concept; say what goes"),
    ],
)
def test_bad_input_is_one_line(text: str, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--recipe", recipe(text), "--model", "shapes", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.strip().splitlines()) == 1
    assert Path("recipe.yaml").read_text() == text


def test_the_model_of_a_file_is_not_taken_from_it(capsys: pytest.CaptureFixture[str]) -> None:
    Path("prompts.yaml").write_text("- {target: star}")
    name = recipe("{prompts_file: prompts.yaml, pretrained_model: {name_or_path: ../mine}, network: {}}")
    assert cli.run(["--recipe", name, "--concept", "star"]) == 2
    assert "is for the model '../mine', which is not taken from a file; name it by --model" in capsys.readouterr().err
    assert cli.run(["--recipe", "none.yaml", "--concept", "star"]) == 2
    assert "none.yaml: No such file" in capsys.readouterr().err
