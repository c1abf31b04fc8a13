"""Checkpoints of trainings: written without a second copy of them in memory, and seldom enough to cost little time."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from erasers.files.atomic import write_atomically
from erasers.files.tensors import KEY

SECONDS = 10.0
"""Between two writes, unless another time is asked for."""
_SECONDS_A_WRITE = 0.5
"""A write that takes longer is done less often in proportion."""
_BYTES_A_SECOND = 200e6
"""Taken for the speed of the disk until a write has been measured."""
_CHUNK = 2**24
_CHECKSUM = "sha256"
_BLANK = "0" * 64
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
        seconds: Between two writes that take up to half a second each, and so at most a twentieth of the time; slower
            ones keep to that share.

    Raises:
        FileNotFoundError: No such folder.
    """

    def __init__(self, path: Path, identity: str, seconds: float = SECONDS) -> None:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"expected an existing folder for {path.name}, got {path.parent}; create it first")
        self.path, self.identity, self.seconds = path, identity, seconds
        self._last, self._speed = time.monotonic(), _BYTES_A_SECOND

    def save(self, state: Callable[[], Mapping[str, torch.Tensor]], agree: Callable[[bool], bool] = bool) -> None:
        """Write the state, unless that was done not long ago.

        Args:
            state: Names the tensors; they are read where they are.
            agree: (whether it is time to write here) -> whether all processes write now.
        """
        tensors = state() if time.monotonic() - self._last >= self.seconds else {}
        if not agree(bool(tensors) and self._rested(tensors)):
            return
        tensors = tensors or state()
        nbytes, started = sum(value.nbytes for value in tensors.values()), time.monotonic()
        write_streamed(self.path, tensors, {KEY: self.identity})
        self._last = time.monotonic()
        self._speed = nbytes / max(self._last - started, 1e-6)

    def _rested(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether the last write is so long ago that one of these keeps to its share of the time."""
        seconds = sum(value.nbytes for value in tensors.values()) / self._speed
        return time.monotonic() - self._last >= self.seconds * max(1.0, seconds / _SECONDS_A_WRITE)

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
                check_sum(self.path, (file.metadata() or {}).get(_CHECKSUM, ""))
                yield _Lazy(file)
        except (SafetensorError, _Damaged, KeyError) as error:
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


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, torch.Tensor]:
    """What an optimizer remembers, as `<prefix>/<parameter's number>/<name>`."""
    return {
        f"{prefix}/{number}/{name}": torch.as_tensor(value)
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], prefix: str) -> None:
    """Let an optimizer remember what `optimizer_tensors` gave, among other tensors."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key in tensors:
        if key.startswith(f"{prefix}/"):
            number, _, name = key.removeprefix(f"{prefix}/").partition("/")
            state.setdefault(int(number), {})[name] = tensors[key]
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def write_streamed(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str]) -> None:
    """Write safetensors atomically, piece by piece: no more than a piece of a tensor is in memory a second time.

    The header carries the sha256 of the file, taken with zeros in its place.

    Tensors with the larger elements come first, so that each lies at a multiple of the size of its elements.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {"__metadata__": {**header, _CHECKSUM: _BLANK}}
    end = 0
    for name in order:
        value, start = tensors[name], end
        end += value.nbytes
        entries[name] = {"dtype": _DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            start, hashed = len(text).to_bytes(8, "little") + text, _Hashed(file)
            hashed.write(start)
            for name in order:
                _append(hashed, tensors[name])
            file.seek(start.index(_BLANK.encode()))
            file.write(hashed.digest.hexdigest().encode())
            file.flush()
            os.fsync(file.fileno())

    write_atomically(path, write)


class _Damaged(Exception):
    """What a file holds is not what was written."""


def check_sum(path: Path, expected: str) -> None:
    """Hold a file that `write_streamed` wrote against the checksum in its header.

    Raises:
        _Damaged: It is another.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
        digest.update(length + header.replace(expected.encode() or b" ", _BLANK.encode(), 1))
        while piece := file.read(_CHUNK):
            digest.update(piece)
    if digest.hexdigest() != expected:
        raise _Damaged("its checksum is another")


class _Hashed:
    """A file, and the sha256 of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, content: Any) -> None:
        """Write bytes."""
        self._file.write(content)
        self.digest.update(content)


def _append(file: _Hashed, value: torch.Tensor) -> None:
    flat = value.detach().reshape(-1)
    for piece in flat.split(_CHUNK // value.element_size()):
        file.write(piece.contiguous().cpu().view(torch.uint8).numpy().data)
