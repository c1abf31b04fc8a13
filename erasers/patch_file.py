"""The file format of a patch: one safetensors file with JSON under one key of its header.

A file is checked before anything is allocated: header length, tensor names, dtypes, shapes and offsets against the size
of the file. Nothing in a file is executed, and no path is taken from it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from erasers.atomic import write_atomically

KEY = "erasers"
FORMAT = 1
_MAX_HEADER = 64 * 2**20
_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}


class PatchError(ValueError):
    """A patch that cannot be used: damaged, foreign or not for this pipeline; the message says which."""


def write(path: Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Write a patch to a temporary file beside `path`, then rename it.

    Raises:
        FileNotFoundError: The folder of `path` does not exist.
        PatchError: `path` is a folder.
    """
    if path.is_dir():
        raise PatchError(f"expected a file to write the patch to, got the folder {path}")
    write_tensors(path, tensors, {KEY: json.dumps(dict(meta), sort_keys=True, allow_nan=False, separators=(",", ":"))})


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str]) -> None:
    """Write safetensors atomically: a reader sees the old file or the new one, never a part.

    Raises:
        FileNotFoundError: The folder of `path` does not exist.
    """
    from safetensors.torch import save

    if not path.parent.is_dir():
        raise FileNotFoundError(f"expected an existing folder for {path.name}, got {path.parent}; create it first")
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(header))

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    write_atomically(path, write)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of a patch file.

    Raises:
        FileNotFoundError: No such file.
        PatchError: Truncated, foreign or written by a newer version of the library.
    """
    from safetensors.torch import load_file

    if not path.exists():
        raise FileNotFoundError(f"expected a patch file, got {path}, which does not exist")
    if not path.is_file():
        raise PatchError(f"expected a patch file, got the folder {path}")
    meta = _check_header(path, read_header(path))
    return load_file(path), meta


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, checked against the size of the file.

    Raises:
        PatchError: The file is not a whole safetensors file.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise PatchError(f"{path.name} is truncated or not a safetensors file ({size} bytes); fetch it again")
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except ValueError:
        raise PatchError(f"{path.name} is not a safetensors file: its header is not JSON") from None
    if not isinstance(header, dict):
        raise PatchError(f"{path.name} is not a safetensors file: its header is not an object")
    end = 0
    for name, entry in header.items():
        if name != "__metadata__":
            end = max(end, _check_entry(path, name, entry))
    if 8 + length + end != size:
        raise PatchError(f"{path.name} is truncated: expected {8 + length + end} bytes, got {size}; fetch it again")
    return header


def _check_entry(path: Path, name: str, entry: Any) -> int:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(isinstance(value, int) and value >= 0 for value in (*shape, start, stop))
    except (TypeError, KeyError, ValueError):
        raise PatchError(f"{path.name} is not a safetensors file: bad entry for {name!r}") from None
    if dtype not in _BYTES:
        raise PatchError(f"expected {name!r} in {path.name} as one of {', '.join(_BYTES)}, got {dtype!r}")
    if not whole or stop - start != math.prod(shape) * _BYTES[dtype]:
        raise PatchError(f"{path.name} is damaged: shape {shape} of {name!r} does not fit {stop - start} bytes")
    return int(stop)


def _check_header(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    metadata = header.get("__metadata__")
    text = metadata.get(KEY) if isinstance(metadata, dict) else None
    if text is None:
        raise PatchError(f"{path.name} is not a patch: no {KEY!r} in its header; was it written by Patch.save?")
    try:
        meta = json.loads(text)
    except (TypeError, ValueError):
        meta = None
    if not isinstance(meta, dict):
        raise PatchError(f"{path.name} is damaged: the {KEY!r} entry of its header is not a JSON object")
    return meta
