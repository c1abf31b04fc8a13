"""The page of what methods need at full size is what its script counts now, and says of what was run and what not."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support import REPOSITORY
from support.scripts import benchmark
from support.selection import only

from erasers import list_erasers
from erasers.diffusion.adaptors.table import denoiser_of
from erasers.eraser import eraser_class

PAGE = (REPOSITORY / "docs" / "full-size.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("full_size")


def rows(title: str) -> dict[str, str]:
    """Method -> its row in the table of a size."""
    lines = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0].splitlines()
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


def test_every_method_is_there_at_every_size(script: ModuleType) -> None:
    assert sorted(script.METHODS) == sorted(list_erasers())
    for title in script.SIZES.values():
        assert list(rows(title)) == list(script.METHODS)
    assert PAGE.startswith(script._HEAD)


@pytest.mark.parametrize("method", only(list_erasers(), "esd", "uce"))
@pytest.mark.parametrize("size", only(["sd14", "sdxl", "sd3", "flux"], "flux"))
def test_rows_are_what_is_counted_now(script: ModuleType, size: str, method: str) -> None:
    runs = json.loads(script.RUNS.read_text(encoding="utf-8")) if size == "sd14" else {}
    row = script.count(method, pipe_of(size), script.CARDS[size])
    assert script._line(method, row, runs.get(method)) == rows(script.SIZES[size])[method]


@cache
def pipe_of(size: str) -> Any:
    return benchmark("architectures").make_pipe(size)


@pytest.mark.parametrize("size", ["sdxl", "flux"])
def test_every_trained_method_fits_the_card_that_a_size_is_meant_for(script: ModuleType, size: str) -> None:
    """On SDXL it is 24 GB, on FLUX.1-dev 80 GB; what is there was counted, see the test above."""
    trained = [method for method in script.METHODS if eraser_class(method).trains]
    everywhere = {method for method in trained if eraser_class(method).everywhere}
    assert {
        "ablation",
        "esd",
        "safe",
        "salun",
        "stereo",
        "hirm",
        "concept_slider",
        "few_shot",
        "adv_unlearn",
        "doco",
        "robust_ablation",
    } == everywhere
    assert script.CARDS[size] == {"sdxl": "24GB", "flux": "80GB"}[size]
    for method in trained:
        assert "needs" not in rows(script.SIZES[size])[method]


def test_published_sizes() -> None:
    sizes = {"sdxl": 2_567_463_684, "sd3": 2_028_328_000, "sd35": 8_056_627_520, "flux": 11_901_408_320}
    for size, count in sizes.items():
        assert sum(weight.numel() for weight in denoiser_of(pipe_of(size)).parameters()) == count


@pytest.mark.full
@pytest.mark.parametrize("size", ["sdxl", "flux"])
def test_a_dry_run_takes_less_than_ten_seconds_without_weights(size: str, tmp_path: Path) -> None:
    folder = benchmark("architectures").save_bare(pipe_of(size), tmp_path / size)
    command = [sys.executable, "-m", "erasers.cli", "--model", str(folder), "--concept", "van gogh", "--method", "esd"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, "--dry-run", "--dtype", "bfloat16"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "floating-point operations" in done.stdout
    # Of the processor: what other processes take is not counted.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    assert [path.name for path in tmp_path.iterdir()] == [size]


def test_what_was_run_is_said_with_how_much_of_it(script: ModuleType) -> None:
    runs, found = json.loads(script.RUNS.read_text(encoding="utf-8")), rows("Stable Diffusion 1.4")
    assert runs
    for method, row in found.items():
        assert ("| run: " in row) == (method in runs)
    for method, one in runs.items():
        assert {**script.REDUCED[method], **one["settings"]}.keys() == script.REDUCED[method].keys()
        assert one["moved_weights"] > 0
        assert one["seconds"] > 0
