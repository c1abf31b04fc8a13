"""The page of what methods need at full size is what its script counts now, and says of what was run and what not."""

from __future__ import annotations

import json
from types import ModuleType

import pytest
from support import REPOSITORY
from support.scripts import benchmark

from erasers import list_erasers

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


@pytest.mark.full
def test_rows_are_what_is_counted_now(script: ModuleType) -> None:
    runs = json.loads(script.RUNS.read_text(encoding="utf-8"))
    pipe, found = script.make_pipe("sd14"), rows("Stable Diffusion 1.4")
    for method in ("uce", "rece", "realera", "itd", "few_shot", "esd", "doco"):
        assert script._line(method, script.count(method, pipe), runs.get(method)) == found[method]


def test_what_a_family_does_not_have_is_refused_by_the_library_itself(script: ModuleType) -> None:
    pipe, found = script.make_pipe("flux"), rows("FLUX.1-dev")
    for method in script.METHODS:
        assert script._line(method, script.count(method, pipe), None) == found[method]
    assert {method for method, row in found.items() if "refused: " in row} == {
        "itd", "few_shot", "esd", "adv_unlearn", "doco", "robust_ablation"
    }  # fmt: skip
    sdxl = rows("SDXL")
    assert {method for method, row in sdxl.items() if "refused: " in row} == {
        "few_shot", "adv_unlearn", "robust_ablation"
    }  # fmt: skip


def test_what_was_run_is_said_with_how_much_of_it(script: ModuleType) -> None:
    runs, found = json.loads(script.RUNS.read_text(encoding="utf-8")), rows("Stable Diffusion 1.4")
    assert runs
    for method, row in found.items():
        assert ("| run: " in row) == (method in runs)
    for method, one in runs.items():
        assert {**script.REDUCED[method], **one["settings"]}.keys() == script.REDUCED[method].keys()
        assert one["moved_weights"] > 0
        assert one["seconds"] > 0
