"""docs/benchmark.md keeps its word: its table is that of the packaged tasks, and its commands parse."""

from __future__ import annotations

import re
import shlex
from typing import Any

import typer
import yaml
from support import REPOSITORY

from erasers.cli import app as cli
from erasers.evaluation.tasks.cost import estimate, loads
from erasers.evaluation.tasks.files import parse_source
from erasers.evaluation.tasks.prompts import ALL_SPLITS
from erasers.evaluation.tasks.task import list_tasks, read_task

DOCS = (REPOSITORY / "docs" / "benchmark.md").read_text(encoding="utf-8")


def row(name: str) -> str:
    """A task's row of the table."""
    task = read_task(name)
    erased = ", ".join(task.named_cases)
    adult = " (adult)" if task.adult else ""
    samples = ", ".join(f"{split} {n}" for split, n in task.samples.items())
    return f"| `{name}`{adult} | {erased} | `{task.judge}` | {samples} | {', '.join(task.scheme.pillars)} |"


def test_the_table_has_the_packaged_tasks() -> None:
    table = [line for line in DOCS.splitlines() if re.match(r"\| `(sd14|shapes)-\w[\w-]*`.*\|.*\|.*\|.*\|", line)]
    assert table == [row(name) for name in list_tasks()]


def test_the_hours_are_those_of_a_dry_run() -> None:
    for name in (name for name in list_tasks() if name.startswith("sd14")):
        task = read_task(name)
        first = next(estimate(task, loads(task, {"a": list(task.named_cases)})))
        hours = re.search(r"at most ([\d.]+) GPU-hours with attacks", first)
        assert hours
        assert f"`{name}` {hours[1]}" in " ".join(DOCS.split())


def test_commands_parse() -> None:
    group: Any = typer.main.get_command(cli.app)
    blocks = re.findall(r"^```sh\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    commands = [shlex.split(line.partition("bench ")[2]) for line in lines]
    assert len(commands) == 6
    for name, *arguments in commands:
        group.commands["bench"].commands[name].make_context(name, arguments)


def test_the_example_has_the_keys_that_there_are() -> None:
    [block] = re.findall(r"^```yaml\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
    content = yaml.safe_load(block)
    known = {"hub", "revision", "file", "text", "seed", "sha256"}
    assert set(content["sources"]["mine"]) == known
    parse_source("mine", content["sources"]["mine"] | {"revision": "0" * 40, "sha256": "0" * 64})
    assert set(content["prompts"]) <= set(ALL_SPLITS)
