"""The folder of a report: what lies in it, and reading it back without being led elsewhere."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasers.files.reading import open_picture, parse_json

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURE = "grid.png"
SUMMARY = "summary.json"
PAGE = "index.html"
FILES = (PICTURE, PAGE, SUMMARY)
_LARGEST_SUMMARY, _LARGEST_PICTURE = 1 << 24, 1 << 26


def check_report_folder(path: Path) -> Path:
    """A folder that exists or can be created, and in which a report overwrites at most another report.

    Raises:
        FileExistsError: It, or a folder above it, is a file; or it holds a file of a report's name that is none.
        PermissionError: It cannot be written.
    """
    nearest = path.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise FileExistsError(f"--report {path}: {nearest} is a file; expected a folder")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"--report {path}: {nearest} cannot be written")
    taken = [name for name in FILES if os.path.lexists(path / name)]
    if taken and not _holds_report(path):
        raise FileExistsError(
            f"--report {path} holds {' and '.join(taken)} that no report wrote; give a new or empty folder"
        )
    return path


def read_summary(folder: Path) -> dict[str, Any]:
    """The content of a report's `summary.json`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A link or a device in its place, or a file that no report wrote.
    """
    path = folder / SUMMARY
    if not os.path.lexists(path):
        raise FileNotFoundError(f"expected a folder written by erase --report, got {folder}, without {SUMMARY}")
    content = _own_file(path, _LARGEST_SUMMARY)
    try:
        summary = parse_json(content, SUMMARY)
    except ValueError as error:
        raise ValueError(f"expected {path} as JSON, got something else ({error})") from None
    if not isinstance(summary, dict) or not isinstance(summary.get("concepts", {}), dict):
        raise ValueError(f"expected {path} as written by erase --report, got something else")
    return summary


def read_picture(folder: Path) -> Image | None:
    """The pixels of a report's `grid.png`; None when there is no such file.

    Raises:
        ValueError: A link or a device in its place, or a file that is no PNG.
    """
    path = folder / PICTURE
    if not os.path.lexists(path):
        return None
    try:
        with open_picture(io.BytesIO(_own_file(path, _LARGEST_PICTURE))) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"expected {path} as a whole PNG picture, got something else ({error})") from None


def _holds_report(folder: Path) -> bool:
    try:
        return {"method", "library", "splits"} <= set(read_summary(folder))
    except (OSError, ValueError):
        return False


def _own_file(path: Path, limit: int) -> bytes:
    """The bytes of a regular file that lies at `path` itself.

    Raises:
        ValueError: A link, a folder, a device, or more bytes than the limit.
    """
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise ValueError(
            f"expected {path} as a file of its own, got a link or something unreadable ({error})"
        ) from None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ValueError(f"expected {path} as a file of its own, got a folder or a device")
        with os.fdopen(file, "rb", closefd=False) as stream:
            content = stream.read(limit + 1)
    finally:
        os.close(file)
    if len(content) > limit:
        raise ValueError(f"expected {path} with at most {limit} bytes, got more")
    return content
