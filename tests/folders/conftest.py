"""Tiny pipelines of a test's own, and folders of them with hooks."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import hooked
from support.hooked import Saved


@pytest.fixture
def build(pipes: Callable[[str], Any], tmp_path: Path) -> Callable[[str], Any]:
    return lambda family: hooked.build(family, pipes, tmp_path)


@pytest.fixture(scope="session")
def originals(pipes: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """The folder of a family, written once; tests get copies."""
    written: dict[str, Saved] = {}

    def original(family: str) -> Saved:
        if family not in written:
            folder = tmp_path_factory.mktemp(family)
            written[family] = hooked.save(hooked.build(family, pipes, folder), family, folder / "erased")
        return written[family]

    return original


@pytest.fixture
def save(originals: Callable[[str], Saved], tmp_path: Path) -> Callable[[str], Saved]:
    def copied(family: str) -> Saved:
        original = originals(family)
        return dataclasses.replace(original, folder=Path(shutil.copytree(original.folder, tmp_path / "erased")))

    return copied


@pytest.fixture(autouse=True)
def _modules_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where diffusers copies the code that it runs."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
