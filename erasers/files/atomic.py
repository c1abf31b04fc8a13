"""Files that appear whole or not at all."""

from __future__ import annotations

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
