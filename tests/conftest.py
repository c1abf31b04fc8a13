"""Fixtures: a cache of the test's own, and tiny pipelines."""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tables import WRITE, Collector
from support.tiny import make_pipe

# Tiny models lose time to threads, most of all on a busy machine.
torch.set_num_threads(1)
# The bars of libraries below would stand between the lines of the command.
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-support", action="store_true", help="write docs/support.json and docs/support.md")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--write-support") and config.option.markexpr:
        raise pytest.UsageError(
            f"--write-support: expected all cases, got those of -m '{config.option.markexpr}'; run {WRITE}"
        )
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Collector(config.getoption("--write-support")))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERASERS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _own_verbosity() -> Iterator[None]:
    """The command silences the libraries below it for the rest of its process."""
    yield
    for name in ("diffusers", "transformers"):
        if name in sys.modules:
            logging = importlib.import_module(f"{name}.utils.logging")
            logging.set_verbosity_warning()


@pytest.fixture(scope="session")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Builds a pipeline of a family once; every call gives modules of its own."""
    built: dict[str, Any] = {}

    def build(family: str) -> Any:
        if family not in built:
            built[family] = make_pipe(family, tmp_path_factory.mktemp(family))
        original = built[family]
        parts = dict(original.components)
        parts |= {name: copy.deepcopy(parts[name]) for name in parts if isinstance(parts[name], torch.nn.Module)}
        extra = {"add_watermarker": False} if family == "sdxl" else {"requires_safety_checker": False}
        pipe = type(original)(**parts, **extra)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return build


@pytest.fixture
def pipe(pipes: Callable[[str], Any]) -> Any:
    """A tiny Stable Diffusion 1 pipeline of the test's own."""
    return pipes("sd1")
