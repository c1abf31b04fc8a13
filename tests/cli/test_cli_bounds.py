"""Numbers, files and arguments out of all bounds: one line and exit code 2 before any work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from support import REPOSITORY
from support.selection import rows

from erasers.cli import app as cli
from erasers.cli.app import run
from erasers.eraser import get_eraser
from erasers.evaluation.tasks.files import Source, locate, read_rows
from erasers.evaluation.tasks.task import parse_task, read_task
from erasers.judges import get_judge

RESULT = REPOSITORY / "benchmarks" / "results" / "shapes-inversion@1" / "uce.json"
TASK: dict[str, Any] = {
    "name": "tiny",
    "version": 1,
    "model": "shapes",
    "cases": [["star"]],
    "samples": {"explicit": 2},
    "judge": "oracle/shapes",
    "scheme": {"pillars": ["erasure"]},
}
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    started = time.process_time()
    assert run(arguments) == code
    assert time.process_time() - started < 30
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1, printed.err
    assert "Traceback" not in printed.err
    assert len(printed.err) < 2000
    return printed.err


def parameters(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for parameter in command.params:
        yield path, parameter
    for name, inner in getattr(command, "commands", {}).items():
        yield from parameters(inner, (*path, name))


def test_every_number_of_the_command_has_bounds() -> None:
    command: Any = typer.main.get_command(cli.app)
    kinds = []
    for path, parameter in parameters(command):
        kind = str(parameter.type_descriptor.annotation)
        if "int" not in kind and "float" not in kind:
            continue
        assert None not in (parameter.min, parameter.max), (path, parameter.name)
        kinds.append(kind)
        for text in ("nan", "inf", "-inf", "1e999") if "float" in kind else ("99999999999999999999",):
            with pytest.raises(Exception, match="finite|should be"):
                parameter.process_value(command.make_context("erase", []), text)
    assert len(kinds) > 15
    assert any("float" in kind for kind in kinds)


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "a star", "--model", "shapes", "--size", "1000000000"],
        ["generate", "a star", "--model", "shapes", "--steps", "99999999999999999999"],
        ["generate", "a star", "--model", "shapes", "--guidance", "nan"],
        ["generate", "a star", "--model", "shapes", "--guidance", "1e300"],
        ["generate", "a star", "--model", "shapes", "--strength", "inf"],
        ["generate", "a star", "--model", "shapes", "--seed", str(1 << 64)],
        ["--concept", "star", "--model", "shapes", "--seed", str(1 << 63)],
        ["--concept", "star", "--model", "shapes", "--set", "ridge=nan"],
        ["--concept", "star", "--model", "shapes", "--set", "ridge=1e300"],
        ["--concept", "star", "--model", "shapes", "--method", "esd", "--set", "iterations=1000000000000"],
        ["--concept", "star", "--model", "shapes", "--report", "x", "--samples", "1000000000"],
        ["sae", "train", "--model", "shapes", "--out", "x.safetensors", "--steps", str(1 << 65)],
        ["sae", "train", "--model", "shapes", "--out", "x.safetensors", "--lr", "nan"],
        ["bench", "run", "shapes-smoke", "--limit", str(10**30)],
        ["bench", "verify", "x.json", "--redraw", str(10**30)],
        ["generate", "a star", "--model", "~no such user/x"],
        ["inspect", "~no such user/x.safetensors"],
        ["inspect", "\udcff.safetensors"],
        ["--concept", "st\udce9ar", "--model", "shapes"],
    ],
    ids=lambda arguments: ascii(" ".join(arguments[-2:])),
)
def test_what_is_out_of_bounds_is_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(arguments, capsys)
    assert os.listdir(tmp_path) == []


def test_bytes_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "erasers.cli", "inspect", b"\xff\xfe.safetensors"]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"COLUMNS": "120"}, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: expected arguments in UTF-8")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("columns", "argument"),
    rows(
        [("0", "methods"), ("00", "methods"), ("", "methods"), ("1", "methods"), ("0", "--help")],
        default=lambda columns, argument: (columns, argument) == ("", "methods"),
    ),
)
def test_a_terminal_of_no_columns_shows_everything(columns: str, argument: str) -> None:
    command = [sys.executable, "-m", "erasers.cli", argument]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": columns}, check=False)
    assert done.returncode == 0
    assert ("uce" in done.stdout) if argument == "methods" else len(done.stdout) > 500


TASKS: dict[str, tuple[dict[str, Any], str]] = {
    "samples": ({"samples": {"explicit": 1_000_000}}, "samples.explicit: expected a whole number from 1 to 50000"),
    "all samples": ({"cases": [["star"], ["ring"], ["red"]], "samples": {"explicit": 49_000}}, "100000 pictures a row"),
    "steps": ({"sampling": {"steps": 10**12}}, "sampling.steps: expected a whole number from 1 to 10000"),
    "size": ({"sampling": {"size": 10**9}}, "sampling.size: expected a whole number from 1 to 16384"),
    "batch": ({"sampling": {"batch": 10**9}}, "sampling.batch"),
    "guidance": ({"sampling": {"guidance": 1e300}}, "sampling.guidance"),
    "attack": ({"attacks": {"random_prefix": {"samples": 10**6}}}, "at most 50000 samples"),
    "images": ({"attacks": {"random_prefix": {"samples": 1, "images": 10**15}}}, "images as a number of at most"),
    "seeds": ({"attacks": {"random_prefix": {"samples": 1, "replicate": 10**6}}}, "replicate: expected a whole number"),
    "version": ({"version": 10**30}, "version: expected a whole number"),
    "list": ({"samples": [1, 2]}, "samples: expected keys and values"),
    "options": ({"judge_options": [1]}, "judge_options: expected keys and values"),
    "q16": ({"judge": "q16/vitl14"}, "expected the options model, prompts of the judge 'q16/vitl14', got none"),
    "classifier": ({"judge": "classifier"}, "expected the options model of the judge 'classifier', got none"),
    "clip": ({"judge": "clip_zeroshot/mine"}, "clip_zeroshot"),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_out_of_bounds_is_one_line(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    change, message = TASKS[name]
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(TASK | change))
    assert message in " ".join(refused(["bench", "run", str(path), "--dry-run"], capsys).split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "aliases"),
        ("name: x\nname: y", "the key 'name' twice"),
        ("[" * 100_000, "more than 64 levels"),
        ("version: .nan", "no finite number"),
        ("- a\n- b", "task: expected keys and values"),
    ],
)
def test_a_task_file_that_is_a_trap_is_one_line(
    text: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(text)
    assert message in refused(["bench", "run", str(path), "--dry-run"], capsys)


def changed(change: str) -> Any:
    """A result file out of shape."""
    data = json.loads(RESULT.read_text())
    case, plan = data["cases"]["star"], data["task"]["attacks"]["cce"]
    if change == "no budget":
        del plan["budget"]
    elif change == "no options":
        del plan["options"]
    elif change == "list of cases":
        data["cases"] = [case]
    elif change == "list of samples":
        case["samples"][0] = [1]
    elif change == "list of attacks":
        case["attacks"] = [case["attacks"]]
    elif change == "list of wants":
        case["samples"][0]["wants"] = ["object"]
    elif change == "huge seed":
        case["samples"][0]["seed"] = 10**301
    elif change == "huge value":
        data["figures"]["all"][0]["value"] = 10**39
    elif change == "no samples":
        del case["samples"]
    elif change == "no judge":
        del data["judge"]
    elif change == "no unedited":
        del data["scores"]
    return data


@pytest.mark.parametrize("command", ["verify", "compare", "leaderboard"])
@pytest.mark.parametrize(
    "change",
    [
        "no budget",
        "no options",
        "list of cases",
        "list of samples",
        "list of attacks",
        "list of wants",
        "huge seed",
        "huge value",
        "no samples",
        "no judge",
        "no unedited",
        "deep",
        "nan",
    ],
)
def test_a_result_out_of_shape_is_refused_in_lines(
    change: str, command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    texts = {"deep": '{"format":' * 200_000, "nan": '{"format": NaN}'}
    path = tmp_path / "uce.json"
    path.write_text(texts.get(change) or json.dumps(changed(change)))
    (tmp_path / "unedited.json").write_bytes(RESULT.with_name("unedited.json").read_bytes())
    arguments = {"compare": [str(path)] * 2, "leaderboard": [str(path), "--out", str(tmp_path / "board")]}
    code = run(["bench", command, *arguments.get(command, [str(path)])])
    printed = capsys.readouterr()
    # No file shows what its figures were measured in, and `compare` does not look at everything.
    assert code in ((0, 1, 2) if command == "compare" or change == "huge value" else (1, 2))
    assert "Error:" not in printed.err
    assert all(len(line) < 2000 for line in (printed.out + printed.err).splitlines())


def test_a_judge_without_what_it_needs_is_named() -> None:
    with pytest.raises(ValueError, match="expected the options model, prompts of the judge 'q16', got none"):
        get_judge("q16")
    with pytest.raises(ValueError, match="expected the options prompts of the judge 'q16/vitl14', got none"):
        get_judge("q16/vitl14", model="x")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e10, -1e10])
def test_a_number_of_a_method_is_finite_and_no_slip(value: float) -> None:
    with pytest.raises(ValueError, match="expected ridge as a number of at most 1,000,000,000"):
        get_eraser("uce", ridge=value)


def test_packaged_tasks_are_within_the_bounds() -> None:
    from erasers.evaluation.tasks.task import list_tasks

    assert all(read_task(name) for name in list_tasks())
    assert parse_task(TASK).samples == {"explicit": 2}


def test_prompts_that_change_after_they_were_hashed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt\na star\n")
    source = locate("mine", Source(file="prompts.csv"), path)
    path.write_text("prompt\nsomething else\n")
    with pytest.raises(ValueError, match="a file that was changed since its sha256 was taken"):
        read_rows("mine", source)


def test_a_text_of_jsonl_may_have_line_separators_of_unicode(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a\u2028star"}\n\n{"prompt": "b\u0085"}\r\n', encoding="utf-8")
    rows = read_rows("mine", locate("mine", Source(file="prompts.jsonl"), path))
    assert [row["prompt"] for row in rows] == ["a\u2028star", "b\u0085"]


FULL = """
import resource, signal, sys
from pathlib import Path
from erasers.evaluation.store import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path(sys.argv[1]))
journal.add([("a", 1)])
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    journal.add([("b" + str(i), "x" * 100) for i in range(50)])
except OSError as error:
    print(error.strerror, journal.get("b0"))
journal.add([("c", 3)])
again = Journal(Path(sys.argv[1]))
print(again.damaged, again.get("a"), again.get("b0"), again.get("c"))
"""


@pytest.mark.full
def test_a_full_disk_leaves_no_half_entry(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("File too large None\n0 1 None 3\n", "")
