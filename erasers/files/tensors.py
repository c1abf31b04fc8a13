"""The file format of a patch: one safetensors file with JSON under one key of its header.

A file is checked before anything is allocated: the length of its header, the header itself, and dtypes, shapes and
offsets against the size of the file. It is opened once and every byte is read once, so that what was checked is what is
used, whatever happens to the file meanwhile. Nothing in a file is executed, and no path is taken from it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import torch

from erasers.files.atomic import write_atomically
from erasers.files.reading import parse_json

KEY = "erasers"
FORMAT = 1
# Parsed JSON takes up to 25 times the memory of its text. 3,000 low-rank edits have a header of 1.2 MiB.
_MAX_HEADER = 4 * 2**20
_MAX_DEPTH = 16
_MAX_DIMENSIONS = 8
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


class PatchError(ValueError):
    """A patch that cannot be used: damaged, foreign or not for this pipeline; the message says which."""


def write(
    path: Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any], header: Mapping[str, str] | None = None
) -> None:
    """Write a patch to a temporary file beside `path`, then rename it.

    Args:
        path: The file.
        tensors: By name.
        meta: The patch's metadata.
        header: More texts for the header of the file, which are no part of the patch.

    Raises:
        FileNotFoundError: The folder of `path` does not exist.
        PatchError: `path` is a folder, or the metadata is larger or deeper than `read` takes.
    """
    if path.is_dir():
        raise PatchError(f"expected a file to write the patch to, got the folder {path}")
    text = json.dumps(dict(meta), sort_keys=True, allow_nan=False, separators=(",", ":"))
    _parse(text, "the metadata")
    write_tensors(path, tensors, {**(header or {}), KEY: text})


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str]) -> None:
    """Write safetensors atomically: a reader sees the old file or the new one, never a part.

    Raises:
        FileNotFoundError: The folder of `path` does not exist.
        PatchError: The header is larger than `read` takes.
    """
    from safetensors.torch import save

    if not path.parent.is_dir():
        raise FileNotFoundError(f"expected an existing folder for {path.name}, got {path.parent}; create it first")
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(header))
    length = int.from_bytes(data[:8], "little")
    if length > _MAX_HEADER:
        raise PatchError(f"expected names and metadata of at most {_MAX_HEADER} bytes for {path.name}, got {length}")

    write_atomically(path, lambda temporary: temporary.write_bytes(data))


class _Entry(NamedTuple):
    name: str
    dtype: torch.dtype
    shape: list[int]
    start: int
    stop: int


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of a patch file.

    Raises:
        FileNotFoundError: No such file.
        PatchError: Truncated, damaged or foreign.
    """
    if not path.exists():
        raise FileNotFoundError(f"expected a patch file, got {path}, which does not exist")
    if not path.is_file():
        raise PatchError(f"expected a patch file, got {path}, which is {'a folder' if path.is_dir() else 'no file'}")
    with open(path, "rb") as file:
        header, room = _read_header(file, path.name)
        meta = _find_meta(header.pop("__metadata__", None), path.name)
        entries = [_find_entry(name, entry, room, path.name) for name, entry in header.items()]
        return {entry.name: _read_tensor(file, entry, path.name) for entry in _in_order(entries, room, path.name)}, meta


def read_header_text(path: Path, key: str) -> str | None:
    """A text of the header of a patch file that is no part of the patch; None where it has none.

    Raises:
        PatchError: Truncated, damaged or foreign.
    """
    with open(path, "rb") as file:
        metadata = _read_header(file, path.name)[0].get("__metadata__")
    text = metadata.get(key) if isinstance(metadata, dict) else None
    return text if isinstance(text, str) else None


def _read_header(file: BufferedReader, source: str) -> tuple[dict[str, Any], int]:
    """The header, and how many bytes of tensors follow it; the file is then at the first of them."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise PatchError(f"{source} is truncated or not a safetensors file ({size} bytes); fetch it again")
    if length > _MAX_HEADER:
        raise PatchError(f"expected a header of at most {_MAX_HEADER} bytes in {source}, got {length}; is it a patch?")
    try:
        text = file.read(length).decode()
    except UnicodeDecodeError:
        raise PatchError(f"expected the header of {source} as UTF-8 text, got other bytes; is it a patch?") from None
    return _parse(text, f"the header of {source}"), size - 8 - length


def _parse(text: str, what: str) -> dict[str, Any]:
    """A JSON object in which no key is repeated, so that every parser sees the same, and no depth of brackets hurts."""
    try:
        value = parse_json(text, what)
    except ValueError:
        value = None
    if not isinstance(value, dict) or not _is_shallow(value):
        raise PatchError(f"expected {what} as a JSON object of unique keys, at most {_MAX_DEPTH} deep; it is damaged")
    return value


def _is_shallow(value: dict[str, Any]) -> bool:
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        children = (child for item in level for child in (item.values() if isinstance(item, dict) else item))
        level = [child for child in children if isinstance(child, (dict, list))]
        if not level:
            return True
    return False


def _find_meta(metadata: Any, source: str) -> dict[str, Any]:
    text = metadata.get(KEY) if isinstance(metadata, dict) else None
    if text is None:
        raise PatchError(f"{source} is not a patch: no {KEY!r} in its header; was it written by Patch.save?")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise PatchError(f"expected text for every key of the metadata in {source}, got something else; it is damaged")
    return _parse(text, f"the {KEY!r} entry of the header of {source}")


def _find_entry(name: str, entry: Any, room: int, source: str) -> _Entry:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise PatchError(f"expected dtype, shape and data_offsets of {name!r:.80} in {source}, got something else")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = _DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise PatchError(f"expected {name!r:.80} in {source} as one of {', '.join(_DTYPES)}, got {kind!r:.20}")
    # Numbers are held against the size of the file first: a product of huge ones would take hours.
    if not _are_numbers(offsets, 0, room) or len(offsets) != 2:
        raise PatchError(
            f"{source} is truncated or damaged: expected {name!r:.80} within {room} bytes, got {offsets!r:.60}"
        )
    if not _are_numbers(shape, 1, room) or len(shape) > _MAX_DIMENSIONS:
        raise PatchError(f"expected the shape of {name!r:.80} in {source} to fit {room} bytes, got {shape!r:.60}")
    start, stop = offsets
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise PatchError(
            f"expected {name!r:.80} in {source} as {kind} {shape}, got {stop - start} bytes; it is damaged"
        )
    return _Entry(name, dtype, shape, start, stop)


def _are_numbers(values: Any, least: int, most: int) -> bool:
    # True is an int to isinstance.
    return isinstance(values, list) and all(type(value) is int and least <= value <= most for value in values)


def _in_order(entries: list[_Entry], room: int, source: str) -> list[_Entry]:
    """The entries as they lie in the file, which they must fill without gaps or overlaps."""
    entries = sorted(entries, key=lambda entry: entry.start)
    end = 0
    for entry in entries:
        if entry.start != end:
            raise PatchError(f"expected {entry.name!r:.80} in {source} at byte {end}, got {entry.start}; it is damaged")
        end = entry.stop
    if end != room:
        raise PatchError(
            f"{source} is truncated or damaged: expected {end} bytes of tensors, got {room}; fetch it again"
        )
    return entries


def _read_tensor(file: BufferedReader, entry: _Entry, source: str) -> torch.Tensor:
    buffer = bytearray(entry.stop - entry.start)
    # Into memory of its own: a mapped file would change the tensor, checked or not, whenever it is written to.
    if file.readinto(buffer) != len(buffer):
        raise PatchError(f"{source} became shorter while it was read; fetch it again")
    return torch.frombuffer(buffer, dtype=entry.dtype).reshape(entry.shape)
