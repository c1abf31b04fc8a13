"""Files appear whole or not at all, whatever else writes them, and wherever writing ends."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from erasers.evaluation.store import Store
from erasers.files.atomic import write_atomically
from erasers.files.reading import at_home

WRITER = """
import os, sys
from pathlib import Path
from erasers.files.atomic import write_atomically
os.getpid = lambda: 1
for _ in range(300):
    write_atomically(Path(sys.argv[1]), lambda part: part.write_text(sys.argv[2] * 100_000))
"""


def test_processes_of_one_number_do_not_tear_a_file(tmp_path: Path) -> None:
    """Two containers that share a folder both begin to count at 1."""
    target = tmp_path / "x"
    target.write_text("a" * 100_000)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(target), letter], stderr=subprocess.PIPE) for letter in "ab"
    ]
    torn = 0
    while any(writer.poll() is None for writer in writers):
        torn += target.read_text() not in ("a" * 100_000, "b" * 100_000)
    errors = [writer.communicate()[1].decode() for writer in writers]
    assert (torn, errors) == (0, ["", ""])
    assert os.listdir(tmp_path) == ["x"]


def test_a_long_name_has_room_for_its_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 252)
    write_atomically(path, lambda part: part.write_text("whole"))
    assert path.read_text() == "whole"


def full(part: Path) -> None:
    part.write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device", str(part))


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, full)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_full_disk_leaves_no_half_patch(tmp_path: Path) -> None:
    class Patch:
        save = staticmethod(full)

    with pytest.raises(OSError, match="No space left"):
        Store(tmp_path).add_patch("a" * 64, Patch(), 1.0)  # type: ignore[arg-type]
    assert os.listdir(tmp_path / "patches") == []


@pytest.mark.parametrize("path", ["~no such user/x", "~no such user"])
def test_a_home_that_is_not_there_is_named(path: str) -> None:
    with pytest.raises(ValueError, match="no home folder for '~no such user'"):
        at_home(path)
    assert at_home("x/~y") == Path("x/~y")
