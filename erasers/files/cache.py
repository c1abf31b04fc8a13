"""A disk cache of tensors: encoded preserve sets and Gram matrices, by the fingerprint of what they came from.

The folder is `$ERASERS_CACHE`, else `erasers` in the user's cache folder; it can be deleted at any time. Files are
safetensors with a checksum; one that cannot be read or does not match is treated as absent and written anew.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from erasers.files.hashing import raw_bytes
from erasers.files.reading import at_home
from erasers.files.tensors import write_tensors

_LOG = logging.getLogger(__name__)
_CHECKSUM = "sha256"


def cache_dir() -> Path:
    """Folder of the cache; it need not exist yet.

    Raises:
        ValueError: The user has no home folder, and no variable names another.
    """
    own = os.environ.get("ERASERS_CACHE")
    return at_home(own) if own else at_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "erasers"


def cached(kind: str, key: object, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What `make` returns, computed once for each key.

    Args:
        kind: First part of the file name.
        key: Anything whose `repr` says all that the result depends on.
        make: Computes the tensors.
    """
    try:
        folder = cache_dir()
    except ValueError as error:
        _LOG.warning("nothing is cached: %s; set ERASERS_CACHE", error)
        return make()
    path = folder / f"{kind}-{hashlib.sha256(repr(key).encode()).hexdigest()[:40]}.safetensors"
    tensors = _load(path)
    if tensors is None:
        tensors = make()
        _store(path, tensors)
    return tensors


def _load(path: Path) -> dict[str, torch.Tensor] | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            checksum = (file.metadata() or {}).get(_CHECKSUM)
    except (OSError, SafetensorError, ValueError) as error:
        if path.exists():
            _LOG.warning("ignoring the damaged cache file %s: %s", path, error)
        return None
    if checksum != _checksum(tensors):
        _LOG.warning("ignoring the damaged cache file %s: its checksum differs", path)
        return None
    return tensors


def _store(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, {_CHECKSUM: _checksum(tensors)})
    except OSError as error:
        _LOG.warning("the cache %s cannot be written: %s", path.parent, error)


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(raw_bytes(tensors[name]))
    return digest.hexdigest()
