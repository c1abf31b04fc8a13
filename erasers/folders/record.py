"""The record of an erased folder: which patches its pipeline carries, and the sha256 of every other file in it.

A folder is held against its record before anything in it is loaded. The strength of a patch with hooks stands in the
record and in the file of its hooks, so that neither can be turned alone. The record lies open: who can write to the
folder and knows this format can make a record that fits. It shows damage and careless or partial changes, and for
others there is the record's own sha256, which a publisher can announce elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasers.files.hashing import file_sha256
from erasers.files.reading import read_json
from erasers.files.tensors import read_header_text
from erasers.patch import Patch, PatchError
from erasers.version import library_version

RECORD = "erasure.json"
COMPONENT = "erasure"
PATCHES = "patches.d"
STRENGTH = "strength"
_AGAIN = "fetch the whole folder again"
# Notes, pictures and a Hub client's own folders say nothing to a loader.
_HARMLESS = {".md", ".png", ".jpg", ".jpeg", ".webp", ".html", ".gitattributes", ".gitignore", ""}


@dataclass(frozen=True)
class Hooks:
    """A patch with hooks, as a record has it.

    Args:
        digest: Of the patch in the folder.
        strength: With which it was saved.
    """

    digest: str
    strength: float


def write_record(folder: Path, home: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write the record of a folder whose other files are all there.

    Args:
        folder: Of the pipeline.
        home: Where the record goes, in it.
        entries: One for each patch.
    """
    record = {"library": library_version(), "patches": list(entries), "files": _hashes(folder, _files(folder))}
    (home / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def entry_of(patch: Patch, strength: float) -> dict[str, Any]:
    """What a record says of a patch."""
    kept = ("method", "config", "concepts", "library", "base")
    return {"sha256": patch.digest, "strength": strength} | {key: patch.meta[key] for key in kept if key in patch.meta}


def recorded(folder: Path) -> set[str]:
    """Digests of the patches that a folder carries, by its record; none where there is no record."""
    digests: set[str] = set()
    for path in (folder / RECORD, folder / COMPONENT / RECORD):
        try:
            digests |= {str(entry["sha256"]) for entry in _read(path)["patches"]}
        except (OSError, KeyError, TypeError, PatchError):
            continue
    return digests


def check_folder(folder: Path, *, whole: bool = True) -> None:
    """Hold all files of a folder against its record; a folder without a record, or with one of before, passes.

    Args:
        folder: Of the pipeline.
        whole: Refuse a folder in which files are missing, too; the Hub's clients fetch only what they will read.

    Raises:
        PatchError: A file that was changed, added or lost since the folder was saved; names the first.
    """
    records = [path for path in (folder / RECORD, folder / COMPONENT / RECORD) if path.is_file()]
    for path in records:
        files = _read(path).get("files")
        if files is None:
            _refuse_stripped(folder, path)
            continue
        if not isinstance(files, dict):
            raise PatchError(f"{path} is damaged; {_AGAIN}")
        _compare(folder, files, whole=whole)


def read_hooks(folder: Path) -> list[tuple[Patch, float]]:
    """Patches with their strengths out of the folder `erasure` of a pipeline, in order.

    Raises:
        FileNotFoundError: There is no record, or a patch of it is missing.
        PatchError: What is there is not what the record says.
    """
    path = folder / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"expected the record of an erasure, got no {path}; {_AGAIN}")
    try:
        entries = [entry for entry in _read(path)["patches"] if "hooks" in entry]
        wanted = [Hooks(str(entry["hooks"]), float(entry["strength"])) for entry in entries]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise PatchError(f"{path} is damaged ({type(error).__name__}); {_AGAIN}") from None
    if not wanted:
        raise PatchError(f"expected patches in {path}, got none; {_AGAIN}")
    # Files are found by their number: no path is taken from the record.
    return [
        (_checked(folder / PATCHES / f"{number}.safetensors", hooks, path), hooks.strength)
        for number, hooks in enumerate(wanted)
    ]


def _checked(file: Path, hooks: Hooks, record: Path) -> Patch:
    patch = Patch.load(file)
    if patch.digest != hooks.digest:
        raise PatchError(f"{file} is not the patch of the record; fetch it again")
    saved = read_header_text(file, STRENGTH)
    if saved is not None and saved != repr(hooks.strength):
        raise PatchError(
            f"expected strength {saved:.40} of {patch!r}, with which {file.name} was saved, got {hooks.strength} in "
            f"{record}; {_AGAIN}"
        )
    return patch


def _read(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
    except ValueError as error:
        raise PatchError(f"{path} is damaged ({type(error).__name__}); {_AGAIN}") from None
    if not isinstance(record, dict):
        raise PatchError(f"{path} is damaged; {_AGAIN}")
    return record


def _refuse_stripped(folder: Path, record: Path) -> None:
    """Folders of before have neither strengths in their patches nor hashes in their record."""
    for file in sorted((folder / COMPONENT / PATCHES).glob("*.safetensors")):
        if read_header_text(file, STRENGTH) is not None:
            raise PatchError(f"expected sha256 of all files in {record}, got none; it was changed; {_AGAIN}")


def _compare(folder: Path, files: Mapping[str, Any], *, whole: bool) -> None:
    present = _files(folder)
    lost = sorted(set(files) - set(present))
    if lost and whole:
        raise PatchError(f"expected {lost[0]!r:.200} in {folder}, as it was saved, got no such file; {_AGAIN}")
    added = [name for name in present if name not in files and Path(name).suffix.lower() not in _HARMLESS]
    if added:
        raise PatchError(f"{folder} was saved without {added[0]!r:.200}; remove that file, or {_AGAIN}")
    hashes = _hashes(folder, [name for name in present if name in files])
    changed = [name for name, digest in hashes.items() if digest != files[name]]
    if changed:
        raise PatchError(f"{changed[0]!r:.200} in {folder} is not the file that was saved; {_AGAIN}")


def _files(folder: Path) -> list[str]:
    """Names of all files but records, relative to the folder; hidden folders are a client's own."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())
    records = {RECORD, f"{COMPONENT}/{RECORD}"}
    return [
        name.as_posix()
        for name in names
        if name.as_posix() not in records and not any(step.startswith(".") for step in name.parts[:-1])
    ]


def _hashes(folder: Path, names: Sequence[str]) -> dict[str, str]:
    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(names, pool.map(lambda name: file_sha256(folder / name), names), strict=True))
