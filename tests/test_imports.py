"""What an import costs, and what the package offers."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from importlib.resources import files

import pytest

import erasers


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    "module", ["erasers", "erasers.concept.concept", "erasers.eraser", "erasers.judges", "erasers.cli.app"]
)
def test_importing_does_not_load_torch(module: str) -> None:
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'diffusers', 'transformers', 'numpy') if m in sys.modules])"
    )
    assert run_python(code).strip() == "[]"


def test_import_is_quick() -> None:
    code = "import time; t = time.perf_counter(); import erasers; print(time.perf_counter() - t)"
    # The quickest of several: a busy machine must not fail this.
    assert min(float(run_python(code)) for _ in range(3)) < 0.3


def test_the_help_does_not_load_torch() -> None:
    code = "import sys; from erasers.cli.app import run; run(['--help']); print('torch' in sys.modules)"
    assert run_python(code).strip().endswith("False")


def test_every_public_name_is_there_and_sorted() -> None:
    assert erasers.__all__ == sorted(erasers.__all__)
    for name in erasers.__all__:
        assert getattr(erasers, name) is not None


def test_an_unknown_name_raises() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Erazer'"):
        erasers.Erazer  # noqa: B018


def test_methods_are_registered() -> None:
    assert {"uce", "rece"} <= {entry.name for entry in entry_points(group="erasers")}


@pytest.mark.parametrize(
    "path",
    [
        "py.typed",
        "concept/concepts.yaml",
        "judges/calibration.json",
        "worlds/shapes/judge.safetensors",
        "worlds/shapes/model/model_index.json",
        "worlds/shapes_llava/model/config.json",
    ],
)
def test_data_is_in_the_package(path: str) -> None:
    assert files("erasers").joinpath(path).is_file()
