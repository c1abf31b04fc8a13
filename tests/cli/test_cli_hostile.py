"""The command on damaged and hostile patch files: exit code 2, one line, nothing that a terminal would obey."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from support.patch_files import BIAS, make_seeds, put_together, take_apart
from support.tiny import weights

from erasers.cli import app as cli


@pytest.fixture
def seeds(pipe: Any) -> dict[str, bytes]:
    return make_seeds(weights(pipe))


@pytest.fixture(scope="module")
def folder(pipes: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    pipes("sd1").save_pretrained(path)
    return path


def bad_files(seeds: dict[str, bytes]) -> dict[str, bytes]:
    parts, tensors = take_apart(seeds["dense"]), load(seeds["dense"])
    text = json.dumps(parts.meta)
    evil = parts.meta | {"concepts": [{"name": "\x1b[2J[/x]"}], "method": "[bold]\u202e"}
    return {
        "empty": b"",
        "cut": seeds["dense"][:-1],
        "bomb": parts.whole('{"a":' * 100_000),
        "twice": parts.whole(text=text[:-1] + ', "format": 1}'),
        "future": put_together(tensors, parts.meta | {"format": 2}),
        "path": put_together({"dense/../../\x1b[2Jx": torch.zeros(2)}, parts.meta),
        "nan": put_together(tensors | {f"dense/{BIAS}": torch.tensor([float("nan")] * 8)}, parts.meta),
        "kind": put_together({"hook/unet/evil/A": torch.zeros(2, 2)}, parts.meta),
        "surrogate": put_together(tensors, parts.meta | {"method": "\ud800"}),
        "base": put_together(tensors, evil | {"base": dict.fromkeys(parts.meta["base"], "[/x]")}),
    }


def check_refused(code: int, output: str, error: str) -> None:
    assert code == 2
    assert output == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert error[:-1].isprintable()


def test_the_command_refuses_in_one_line(seeds, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    for name, whole in bad_files(seeds).items():
        (tmp_path / name).write_bytes(whole)
        saved = tmp_path / "saved"
        for command in (["inspect", tmp_path / name], ["apply", tmp_path / name, "--model", folder, "--save", saved]):
            code = cli.run([str(word) for word in command])
            check_refused(code, *capsys.readouterr())
        assert not saved.exists()


def test_the_command_refuses_a_patch_that_does_not_fit(seeds, folder, tmp_path, capsys):
    parts = take_apart(seeds["dense"])
    wrong = parts.meta | {"base": dict.fromkeys(parts.meta["base"], "0" * 64)}
    (tmp_path / "x").write_bytes(put_together(load(seeds["dense"]), wrong))
    command = ["apply", tmp_path / "x", "--model", folder, "--save", tmp_path / "saved"]
    code = cli.run([str(word) for word in command])
    check_refused(code, *capsys.readouterr())
    assert not (tmp_path / "saved").exists()
    assert cli.run([*(str(word) for word in command), "--force"]) == 0


def test_the_command_prints_no_control_characters(seeds, tmp_path, capsys):
    parts = take_apart(seeds["dense"])
    evil = {
        "concepts": [{"name": "\x1b[2J[/x]\n", "anchor": "[bold]"}],
        "method": "[red]\u202e",
        "config": {"\r": "\x07"},
    }
    (tmp_path / "x").write_bytes(put_together(load(seeds["dense"]), parts.meta | evil))
    assert cli.run(["inspect", str(tmp_path / "x")]) == 0
    output, _ = capsys.readouterr()
    assert output.replace("\n", "").isprintable()
    assert "\\x1b[2J[/x]\\n" in output
    assert "[red]" in output


@pytest.mark.full
def test_a_process_of_its_own_shows_no_traceback(seeds, tmp_path):
    (tmp_path / "x").write_bytes(bad_files(seeds)["bomb"])
    command = [sys.executable, "-m", "erasers.cli", "inspect", str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "120"}, check=False)
    check_refused(done.returncode, done.stdout, done.stderr)
