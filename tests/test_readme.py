"""The README keeps its word: its commands parse, its Python runs, its Quick start is what is promised."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from support import REPOSITORY

from erasers.cli import app as cli

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def quick_start() -> list[str]:
    section = re.search(r"^## Quick start$(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    assert section
    return blocks("sh", section[1])


def commands() -> list[list[str]]:
    texts = [*blocks("sh"), *(re.sub(r"\[/?[a-z]+\]", "", cli.EXAMPLES),)]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("erase ")]


def test_quick_start_is_two_blocks_that_do_all_the_set_up() -> None:
    first, second = quick_start()
    assert first.splitlines()[0] == "python -m pip install -e . -c constraints.txt"
    assert "--model shapes" in first
    assert "--report report" in first
    assert second.splitlines() == ['python -m pip install -e ".[test]" -c constraints.txt', "python -m pytest -n 2"]


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_commands_parse(arguments: list[str]) -> None:
    group: Any = typer.main.get_command(cli.app)
    if arguments[0] in group.commands:
        group.commands[arguments[0]].make_context(arguments[0], arguments[1:])
    else:
        group.make_context("erase", arguments)


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, drop_in = blocks("python")
    assert len(first.splitlines()) <= 12
    assert len(drop_in.splitlines()) <= 6
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(first, names)
    image = names.pop("image")
    exec(drop_in, names)
    assert names["image"].size == image.size == (32, 32)
    assert names["image"].tobytes() != image.tobytes()
    assert type(names["erased"]).__name__ == "StableDiffusionPipeline"
    assert (tmp_path / "shapes-without-star" / "model_index.json").is_file()


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/patches.md", "docs/support.md"]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or ((REPOSITORY / page).parent / target).exists(), target


def test_the_methods_table_has_every_method() -> None:
    from erasers import list_erasers

    for name in list_erasers():
        assert f"| `{name}` |" in README
    for preset in ("uce-v1", "uce-v2", "rece-official"):
        assert f"`{preset}`" in README


def test_constraints_pin_what_setup_cfg_asks_for() -> None:
    from configparser import ConfigParser

    parser = ConfigParser()
    parser.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    lines = parser["options"]["install_requires"] + parser["options.extras_require"]["test"]
    wanted = {re.split("[<>=]", line)[0].lower().replace("_", "-") for line in lines.split()}
    pins = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert pins[0].startswith("# ")
    assert {pin.split("==")[0].lower().replace("_", "-") for pin in pins[1:]} == wanted


def test_the_table_of_results_is_what_was_measured() -> None:
    rows = json.loads((REPOSITORY / "benchmarks" / "results" / "shapes-closed-form.json").read_text())["rows"]
    cells = {(row["concept"], row["method"]): row["splits"] for row in rows}
    for word in {row["concept"] for row in rows}:
        before, after = cells[word, "unedited"], cells[word, "rece"]
        shares = [f"{100 * before[split]['value']:.1f} → {100 * after[split]['value']:.1f}" for split in before]
        assert f"| {word} | {' | '.join(shares)} |" in README
        assert min(before[split]["value"] for split in ("explicit", "synonym")) >= 0.95
        assert max(after[split]["value"] for split in ("explicit", "synonym")) <= 0.05
        for split in ("neighbour", "unrelated"):
            assert after[split]["value"] >= 0.95 * before[split]["value"]
            assert after[split]["n"] >= 200


@pytest.mark.parametrize("name", ["bare", "methods"])
def test_the_tables_of_the_benchmarks_are_what_was_measured(name: str) -> None:
    guide = (REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for row in json.loads((REPOSITORY / "benchmarks" / "results" / f"shapes-closed-form-{name}.json").read_text())[
        "rows"
    ]:
        shares = " | ".join(f"{100 * score['value']:.1f}" for score in row["splits"].values())
        assert f"| {row['concept']} | {row['method'].removesuffix(' (bare)')} | {shares} |" in guide
