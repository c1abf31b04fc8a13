"""No output takes the place of an input, of another output, or of what is no file; and no result is lost."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from erasers import Patch
from erasers.cli import app as cli
from erasers.cli.targets import written_or_kept
from erasers.files.atomic import put_in_place

ERASE = ["--concept", "star", "--model", "shapes"]
SAE = ["sae", "train", "--model", "shapes"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that nothing may touch."""
    monkeypatch.chdir(tmp_path)
    for name in ("p.safetensors", "a.safetensors", "lines.txt"):
        Path(name).write_text(f"content of {name}")
    Path("link").symlink_to("p.safetensors")
    Path("report").mkdir()


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*ERASE, "--out", "x", "--method", "esd", "--checkpoint", "x"], "--checkpoint x is also --out x"),
        ([*ERASE, "--out", "./x", "--method", "esd", "--checkpoint", "x"], "--checkpoint x is also --out"),
        ([*ERASE, "--out", "report/summary.json", "--report", "report"], "is also --out report/summary.json"),
        ([*ERASE, "--out", "report/grid.png", "--report", "report"], "is also --out report/grid.png"),
        ([*ERASE, "--report", "report", "--out", "report/../report/index.html"], "is also --out"),
        (
            ["generate", "a star", "--model", "shapes", "--patch", "p.safetensors", "--out", "p.safetensors"],
            "--patch p",
        ),
        (["generate", "a star", "--model", "shapes", "--patch", "p.safetensors", "--out", "link"], "is also --patch p"),
        (["generate", "a star", "--model", "a.safetensors", "--out", "a.safetensors"], "is also --model a.safetensors"),
        ([*SAE, "--out", "s.json"], "the .json file beside it s.json is also --out s.json"),
        ([*SAE, "--out", "s.png"], "the .png file beside it s.png is also --out s.png"),
        ([*SAE, "--out", "s.safetensors", "--checkpoint", "s.json"], "s.json is also --checkpoint s.json"),
        ([*SAE, "--out", "lines.txt", "--prompts", "lines.txt"], "--out lines.txt is also --prompts lines.txt"),
        (
            ["explain", "--concept", "star", "--model", "shapes", "--sae", "a.safetensors", "--out", "a.safetensors"],
            "--sae",
        ),
    ],
)
def test_an_output_takes_the_place_of_nothing(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(tmp_path)
    assert cli.run(arguments) == 2
    line = capsys.readouterr().err.replace("\n", " ")
    assert words in line
    assert "Traceback" not in line
    assert contents(tmp_path) == before
    assert list(Path("report").iterdir()) == []


@pytest.mark.parametrize("kind", ["device", "pipe", "read-only", "long name", "longer name"])
def test_what_is_no_file_to_write_stays(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "target"
    if kind == "device":
        target = Path("/dev/null")
    elif kind == "pipe":
        os.mkfifo(target)
    elif kind == "read-only":
        target.write_text("mine")
        target.chmod(0o444)
    else:
        target = tmp_path / ("x" * (240 if kind == "long name" else 300))
    mode = target.stat().st_mode if kind in ("device", "pipe") else 0
    assert cli.run([*ERASE, "--out", str(target)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    if kind == "read-only":
        assert target.read_text() == "mine"
    elif mode:
        assert target.stat().st_mode == mode
        assert not stat.S_ISREG(mode)
    else:
        assert not [path for path in tmp_path.iterdir() if path.name.startswith("xxx")]


def test_a_patch_that_cannot_be_written_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "elsewhere"
    kept.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(kept))
    save = Patch.save

    def full(patch: Patch, path: Path) -> None:
        if kept not in path.parents:
            raise OSError(28, "No space left on device")
        save(patch, path)

    monkeypatch.setattr(Patch, "save", full)
    assert cli.run([*ERASE, "--method", "uce", "--out", "star.safetensors"]) == 2
    line = capsys.readouterr().err.replace("\n", "")
    assert "cannot write star.safetensors (No space left on device); the result is in" in line
    (path,) = kept.rglob("star.safetensors")
    assert Patch.load(path).meta["method"] == "uce"


def test_where_nothing_can_be_written_the_first_reason_stands(tmp_path: Path) -> None:
    def full(path: Path) -> Any:
        raise OSError(28, f"no room for {path.name}")

    with pytest.raises(OSError, match="no room for .*tmp"):
        written_or_kept(full, tmp_path / "target", overwrite=True)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("given", [(), ("--overwrite",)])
def test_a_file_that_appears_meanwhile_stays(
    given: tuple[str, ...], links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "report"))
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links here")))
    save = Patch.save

    def second_command(patch: Patch, path: Path) -> None:
        save(patch, path)
        Path("star.safetensors").write_text("of the second command")

    monkeypatch.setattr(Patch, "save", second_command)
    assert cli.run([*ERASE, "--method", "uce", "--out", "star.safetensors", *given]) == (0 if given else 2)
    if given:
        assert Patch.load("star.safetensors").meta["method"] == "uce"
        return
    line = capsys.readouterr().err.replace("\n", "")
    assert "cannot write star.safetensors (" in line
    assert Path("star.safetensors").read_text() == "of the second command"
    (kept,) = Path("report").rglob("star.safetensors")
    assert Patch.load(kept).meta["method"] == "uce"
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_two_files_of_one_name_are_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    put_in_place(tmp_path / "one", tmp_path / "name", overwrite=False)
    with pytest.raises(FileExistsError, match="a file appeared there meanwhile"):
        put_in_place(tmp_path / "two", tmp_path / "name", overwrite=False)
    assert (tmp_path / "name").read_text() == "one"
    put_in_place(tmp_path / "two", tmp_path / "name", overwrite=True)
    assert (tmp_path / "name").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir() if path.name in ("one", "two", "name")] == ["name"]


def test_a_link_to_nothing_is_there_already(capsys: pytest.CaptureFixture[str]) -> None:
    Path("dangling").symlink_to("nowhere")
    assert cli.run([*ERASE, "--out", "dangling"]) == 2
    assert "--out dangling is there already" in capsys.readouterr().err
