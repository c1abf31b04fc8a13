"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path


def temporary_beside(path: Path) -> Path:
    """A hidden name beside `path` that no other process has: numbers of processes repeat between containers."""
    return path.with_name(f".{secrets.token_hex(12)}.tmp")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it; after an error the old file is as it was."""
    temporary = temporary_beside(path)
    try:
        write(temporary)
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until the bytes of a file are on disk; a name that gets there before them could outlive them."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def put_in_place(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Give a finished file its name.

    Args:
        temporary: The file, in the same folder; it is gone afterwards.
        path: Its name.
        overwrite: A file of that name is replaced.

    Raises:
        FileExistsError: There is a file of that name, and it may not be replaced.
    """
    if overwrite:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)
        temporary.unlink()
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, "a file appeared there meanwhile", str(path)) from None
    except OSError:
        # No links on this file system: an empty file takes the name for a moment.
        path.open("xb").close()
        os.replace(temporary, path)
