"""Checkpoints of trainings: written without a second copy of them in memory, and seldom enough to cost little time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from erasers.atomic import write_atomically
from erasers.patch_file import KEY

_SECONDS_A_WRITE = 0.5
"""A write that takes longer is done less often in proportion."""
_BYTES_A_SECOND = 200e6
"""Taken for the speed of the disk until a write has been measured."""
_CHUNK = 2**24
_DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class CheckpointFile:
    """One safetensors file with all that a training goes on from.

    Args:
        path: Its path.
        identity: Digest of all that the training depends on.

    Raises:
        FileNotFoundError: No such folder.
    """

    def __init__(self, path: Path, identity: str) -> None:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"expected an existing folder for {path.name}, got {path.parent}; create it first")
        self.path, self.identity = path, identity
        self._last, self._speed = time.monotonic(), _BYTES_A_SECOND

    def save(self, state: Callable[[], Mapping[str, torch.Tensor]], least: float) -> None:
        """Write the state, unless that was done not long ago.

        Args:
            state: Names the tensors; they are read where they are.
            least: Seconds between two writes that take up to half a second each, and so at most a twentieth of the
                time; slower ones keep to that share.
        """
        if time.monotonic() - self._last < least:
            return
        tensors = state()
        nbytes = sum(value.nbytes for value in tensors.values())
        seconds = nbytes / self._speed
        if time.monotonic() - self._last < least * max(1.0, seconds / _SECONDS_A_WRITE):
            return
        started = time.monotonic()
        write_streamed(self.path, tensors, {KEY: self.identity})
        self._last = time.monotonic()
        self._speed = nbytes / max(self._last - started, 1e-6)

    @contextmanager
    def read(self, of: str) -> Iterator[Mapping[str, torch.Tensor]]:
        """What the file has, tensor by tensor as they are asked for; nothing without a file.

        Args:
            of: What else a file can be of, for the message.

        Raises:
            ValueError: A damaged file, or one of another training.
        """
        if not self.path.exists():
            yield {}
            return
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                if (file.metadata() or {}).get(KEY) != self.identity:
                    raise ValueError(
                        f"expected a checkpoint of this training in {self.path}, got one of {of}; delete it or name "
                        "another file"
                    )
                yield _Lazy(file)
        except SafetensorError as error:
            raise ValueError(f"expected a checkpoint in {self.path}, got a damaged file ({error}); delete it") from None


class _Lazy(Mapping[str, torch.Tensor]):
    """The tensors of an open safetensors file."""

    def __init__(self, file: Any) -> None:
        self._file, self._names = file, dict.fromkeys(file.keys())

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write_streamed(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str]) -> None:
    """Write safetensors atomically, piece by piece: no more than a piece of a tensor is in memory a second time.

    Tensors with the larger elements come first, so that each lies at a multiple of the size of its elements.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {"__metadata__": dict(header)}
    end = 0
    for name in order:
        value, start = tensors[name], end
        end += value.nbytes
        entries[name] = {"dtype": _DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                _append(file, tensors[name])
            file.flush()
            os.fsync(file.fileno())

    write_atomically(path, write)


def _append(file: BinaryIO, value: torch.Tensor) -> None:
    flat = value.detach().reshape(-1)
    for piece in flat.split(_CHUNK // value.element_size()):
        file.write(piece.contiguous().cpu().view(torch.uint8).numpy().data)
