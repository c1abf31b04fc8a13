"""Where a command writes, held against where it reads and against each other, before any work."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from erasers.concept import Concept
from erasers.files.atomic import flush, put_in_place, temporary_beside
from erasers.files.report_folder import FILES

# What the temporary file beside a target has more in its name.
_TEMPORARY = 32
_LONGEST_NAME = 120
"""Bytes of the concepts in a default name of a file."""


def check_out_file(path: Path, option: str = "--out") -> Path:
    """A file that can be written.

    Raises:
        ValueError: It is a folder.
        FileNotFoundError: Its folder does not exist.
    """
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; expected a file")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{option} {path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.absolute().parent, os.W_OK):
        raise PermissionError(f"{option} {path}: the folder {path.parent} cannot be written")
    return path


def check_targets(
    outputs: Mapping[str, Path | None], inputs: Mapping[str, object] | None = None, *, overwrite: bool
) -> None:
    """Refuse outputs that would destroy something.

    Args:
        outputs: What is written, by what it is called in the message; a `--checkpoint` may be there, for it is gone on
            from.
        inputs: What is read, likewise: a path, text that may be one, several, or None.
        overwrite: Files that are there may be replaced.

    Raises:
        ValueError: Two outputs in one file, or an output in the place of an input.
        FileExistsError: A file in the place of an output, or a device, a pipe or a socket.
        PermissionError: A file that is read-only.
        OSError: A name that is too long.
    """
    targets = {name: path for name, path in outputs.items() if path is not None}
    taken = {_identity(path): f"{name} {path}" for name, value in (inputs or {}).items() for path in _paths(value)}
    for name, path in targets.items():
        identity = _identity(path)
        if identity in taken:
            raise ValueError(f"{name} {path} is also {taken[identity]}; give it another name")
        taken[identity] = f"{name} {path}"
        _check_target(name, path)
        if not overwrite and name != "--checkpoint" and os.path.lexists(path) and not path.is_dir():
            raise FileExistsError(f"{name} {path} is there already; give another name, or --overwrite to replace it")


def default_out(concepts: Sequence[Concept], method: str) -> Path:
    """`<concept>-<method>.safetensors`; several concepts are joined by `+`.

    Letters, their marks and digits of any script stay and spaces become `_`; what else a name has, or what is too long
    of it, is told apart by a hash, so that different concepts have different files.
    """
    names = [unicodedata.normalize("NFC", concept.name) for concept in concepts]
    plain = "+".join(_in_a_file(name) for name in names)
    short = plain.encode()[:_LONGEST_NAME].decode(errors="ignore")
    if short == plain and all(_in_a_file(name).replace("_", " ") == name for name in names):
        return Path(f"{plain}-{method}.safetensors")
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]
    return Path(f"{short}-{digest}-{method}.safetensors")


def report_files(folder: Path | None) -> dict[str, Path]:
    """What a report writes, by what it is called."""
    return {} if folder is None else {f"the report's {name}": folder / name for name in FILES}


def beside(path: Path | None, suffixes: Sequence[str]) -> dict[str, Path]:
    """What is written beside a file, by what it is called: the same with other endings."""
    return {} if path is None else {f"the {suffix} file beside it": path.with_suffix(suffix) for suffix in suffixes}


def written_or_kept(write: Callable[[Path], object], target: Path, *, overwrite: bool) -> None:
    """Write a result; where that fails, write it to a temporary folder, so that the work is not lost.

    Args:
        write: Writes a file of any name.
        target: Where it goes.
        overwrite: A file that appeared there meanwhile, as that of a second command, may be replaced.

    Raises:
        OSError: Says where it is instead.
    """
    temporary = temporary_beside(target)
    try:
        try:
            write(temporary)
            flush(temporary)
            put_in_place(temporary, target, overwrite=overwrite)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        kept = Path(tempfile.mkdtemp(prefix="erasers-")) / target.name[-80:]
        try:
            write(kept)
        except OSError:
            raise error from None
        why = error.strerror or str(error)
        raise OSError(f"cannot write {target} ({why}); the result is in {kept}") from error


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Where a folder is to be written; one that is there already stays until the new one is whole.

    Args:
        folder: New or empty, or one that is to go.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        yield folder
        return
    new, old = temporary_beside(folder), temporary_beside(folder)
    try:
        yield new
        os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            os.replace(old, folder)
            raise
    finally:
        for path in (new, old):
            shutil.rmtree(path, ignore_errors=True)


def _in_a_file(name: str) -> str:
    kept = (letter if unicodedata.category(letter)[0] in "LMN" else "_" for letter in name)
    return re.sub("_+", "_", "".join(kept)).strip("_") or "_"


def _paths(value: object) -> Iterator[Path]:
    if isinstance(value, (str, Path)) and str(value).strip():
        yield Path(value)
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        for entry in value:
            yield from _paths(entry)


def _identity(path: Path) -> tuple[int, int] | str:
    """One value for all names of a file, whether it exists or not."""
    try:
        facts = path.stat()
    except OSError:
        return os.path.realpath(path)
    return facts.st_dev, facts.st_ino


def _check_target(name: str, path: Path) -> None:
    size, most = len(os.fsencode(path.name)), _longest_name(path.absolute().parent) - _TEMPORARY
    if size > most:
        raise OSError(f"{name} {path.name[:40]}...: expected a name of at most {most} bytes, got {size}")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OSError(f"{name} {path}: {error.strerror}") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise FileExistsError(f"{name} {path} is a device, a pipe or a socket; expected a file")
    if stat.S_ISREG(mode) and not mode & 0o222:
        raise PermissionError(f"{name} {path} is read-only; give another name, or make it writable")


def _longest_name(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):
        return 255
