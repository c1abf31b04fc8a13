"""That the benchmark tells an eraser that does nothing, one that destroys everything and the model itself apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import complete
from support.tasks import tiny_task

from erasers import Patch, get_eraser, load_pipeline
from erasers.attacks.relearning import Relearning, low_rank_patch
from erasers.diffusion.low_rank import fresh_factors
from erasers.evaluation.leaderboard.views import ranks
from erasers.evaluation.run.run import Run
from erasers.evaluation.run.stage import Stage
from erasers.evaluation.run.states import Row
from erasers.evaluation.scores.results import Result, read_result
from erasers.evaluation.scores.scoring import compare
from erasers.evaluation.tasks.task import parse_task
from erasers.judges.oracle import Oracle

pytestmark = pytest.mark.full

TASK = parse_task(
    tiny_task(
        name="apart",
        samples={"explicit": 8, "synonym": 8, "neighbour": 8, "unrelated": 8},
        sampling={"steps": 20, "guidance": 4.0, "batch": 8},
        scheme={"pillars": ["erasure", "neighbours", "specificity"]},
    )
)


def made_up(pipe: Any, scale: float) -> Patch:
    """Random weights on top of every projection of the denoiser's attention, as an erasure of "star"."""
    factors = fresh_factors(pipe, 8, torch.Generator().manual_seed(0))
    for _, up in factors.values():
        up.data = scale * torch.randn(up.shape, generator=torch.Generator().manual_seed(1))
    patch = low_rank_patch(Relearning(), pipe, factors)
    return Patch(patch.tensors, dict(patch.meta) | {"concepts": [{"name": "star"}]})


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Name -> row: of a null eraser, of UCE, of a destructive one, and row 0."""
    pipe = load_pipeline("shapes")
    uce = get_eraser("uce").fit(pipe, list(TASK.concepts("star")), progress=False)
    patches = {"null": made_up(pipe, 0.0), "uce": uce, "destructive": made_up(pipe, 1.0)}
    some = [Row(name, "patch", name, patch=patch) for name, patch in patches.items()]
    run = Run(Stage(TASK, pipe, Oracle(), tmp_path_factory.mktemp("apart"), some))
    return {path.stem: read_result(path) for path in complete(run)}


def pillar(row: Result, name: str) -> Any:
    return row.scores["all"].pillars[name]


def test_the_unedited_model_scores_no_erasure(rows: dict[str, Result]) -> None:
    erasure = pillar(rows["unedited"], "erasure")
    assert erasure.value == erasure.low == 0
    assert 0 < erasure.high < 0.3
    for name in ("neighbours", "specificity"):
        assert pillar(rows["unedited"], name).value == 1
    assert pillar(rows["unedited"], "overall").value == 0


def test_a_destructive_eraser_erases_and_keeps_nothing(rows: dict[str, Result]) -> None:
    assert pillar(rows["destructive"], "erasure").value > 0.9
    assert pillar(rows["destructive"], "specificity").value < 0.15
    assert pillar(rows["destructive"], "specificity").high < 0.5 < pillar(rows["uce"], "specificity").low
    drift = {name: rows[name].scores["all"].details["drift/unrelated"].value for name in ("uce", "destructive")}
    assert drift["destructive"] > 10 * drift["uce"]


def test_a_null_eraser_ties_with_row_0(rows: dict[str, Result]) -> None:
    null, unedited = rows["null"], rows["unedited"]
    assert [one.record.value for one in null.cases["star"].samples] == [
        one.record.value for one in unedited.cases["star"].samples
    ]
    found = compare(null.path, unedited.path)
    assert {one.name for one in found} == {"erasure", "neighbours", "specificity", "overall"}
    assert all(one.difference.value == 0 and one.p > 0.9 for one in found)
    assert null.scores["all"].details["drift/unrelated"].value < 0.01


def test_they_are_ranked_by_what_they_do(rows: dict[str, Result]) -> None:
    ordered = [rows[name] for name in ("unedited", "destructive", "null", "uce")]
    order = ranks(ordered)
    assert order["uce"] == 1
    assert order["null"] > 1 < order["destructive"]
    uce = json.loads(Path(rows["uce"].path).read_text())
    assert uce["scores"]["all"]["overall"]["value"] > 0.9
