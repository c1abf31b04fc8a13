"""The report, on a tiny random pipeline with a judge that is made up."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.pages import Page

from erasers import Concept, Patch, get_eraser
from erasers.asks import Ask, PlainPrompt
from erasers.evaluation.drawing import generate
from erasers.evaluation.profile.profile import Profile
from erasers.evaluation.report.report import make_report
from erasers.judges import Fingerprint, Verdict

WORDS = ("star", "ring", "moon")


class Script:
    """Judges by the order in which pictures come."""

    name = "script"
    sees = {"object": WORDS}
    fingerprint = Fingerprint({}, {}, None, "in order", "none")

    def __init__(self, values: Sequence[bool | None]) -> None:
        self.values = list(values)

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Any]) -> list[Any]:
        now, self.values = self.values[: len(images)], self.values[len(images) :]
        return [Verdict(value) for value in now]


def ask(text: str, seed: int) -> Ask:
    return PlainPrompt(text, seed, {"object": text.split()[-1]})


def prompts(concepts: Sequence[Concept], samples: int) -> dict[str, dict[str, list[Ask]]]:
    return {
        concept.name: {
            "explicit": [ask(f"a {concept.name}", i) for i in range(samples)],
            "unrelated": [ask("a moon", 100 + i) for i in range(samples)],
        }
        for concept in concepts
    }


def profile(values: Sequence[bool | None]) -> Profile:
    return Profile(2, 2.0, 3, prompts, judges=lambda: [Script(values)])


@pytest.fixture
def patch(pipe: Any) -> Patch:
    return get_eraser("uce").fit(pipe, "star")


def test_pictures_do_not_depend_on_the_batch(pipe: Any) -> None:
    asks = [ask(text, seed) for seed, text in enumerate(["a star", "a moon", "a circle", "a ring", "a star"])]
    one, three = (
        [image for images in generate(pipe, asks, steps=2, guidance=2.0, batch=batch) for image in images]
        for batch in (1, 3)
    )
    for a, b in zip(one, three, strict=True):
        difference = [abs(x - y) for x, y in zip(a.tobytes(), b.tobytes(), strict=True)]
        assert max(difference) <= 1


def test_the_summary_counts_what_the_judge_says(pipe: Any, patch: Patch, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    # Two concepts, two splits, two samples: before star 2/2 and 1/2, ring 2/2 and 2/2; after all 0/2, 1/2, 0/2, 2/2.
    values = [True, True, True, False, True, True, True, True] + [False, False, False, True, False, False, True, True]
    facts = {"edit_seconds": 0.5, "patch_bytes": 123, "model": "tiny"}
    concepts = [Concept("star"), Concept("ring")]
    summary = make_report(
        pipe, patch, concepts, tmp_path / "new" / "report", profile=profile(values), samples=2, facts=facts
    )
    written = json.loads((tmp_path / "new" / "report" / "summary.json").read_text())
    assert written == summary
    assert list(summary["splits"]) == ["explicit", "unrelated"]
    explicit, unrelated = summary["splits"]["explicit"], summary["splits"]["unrelated"]
    assert (explicit["before"]["value"], explicit["before"]["n"], explicit["after"]["value"]) == (1.0, 4, 0.0)
    assert (unrelated["before"]["value"], unrelated["after"]["value"]) == (0.75, 0.75)
    assert set(explicit["after"]) == {"value", "n", "low", "high"}
    assert summary["concepts"]["star"]["unrelated"]["after"]["value"] == 0.5
    assert summary["concepts"]["ring"]["explicit"]["after"]["n"] == 2
    assert (summary["edit_seconds"], summary["patch_bytes"], summary["method"]) == (0.5, 123, "uce")
    assert "note" not in summary
    assert sorted(path.name for path in (tmp_path / "new" / "report").iterdir()) == [
        "grid.png",
        "index.html",
        "summary.json",
    ]
    with Image.open(tmp_path / "new" / "report" / "grid.png") as grid:
        assert grid.width > 400
    assert summary["readings"]["explicit"]["word"] == "fell; too few pictures to be sure"
    assert summary["warnings"] == []
    assert summary["patch_sha256"] == patch.digest
    (judge,) = summary["judges"]
    assert (judge["name"], judge["splits"]) == ("script", ["explicit", "unrelated"])
    entry = {"concept": "star", "split": "unrelated", "text": "a moon", "seed": 101}
    assert summary["prompts"][3] == entry | {"before": False, "after": True}
    page = (tmp_path / "new" / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("<img") == 2 * len(summary["prompts"])
    assert "✗ not as asked" in page
    assert all(torch.equal(before[name], tensor) for name, tensor in pipe.unet.state_dict().items())


def test_the_page_shows_the_first_prompts_and_those_that_went_wrong(pipe: Any, patch: Patch, tmp_path: Path) -> None:
    kept = [True] * 5 + [True, False, True, True]
    values = [True] * 18 + [False] * 9 + kept
    make_report(pipe, patch, [Concept("star")], tmp_path, profile=profile(values), samples=9)
    page = Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    seeds = [int(found) for _, text in page.all("small") for found in re.findall(r"^seed (\d+)$", text)]
    assert seeds == [0, 1, 2, 3, 100, 101, 102, 103, 106]
    assert [text.count("✗") for attrs, text in page.all("li", class_="card wrong")] == [1]


def test_what_nobody_sees_is_no_failure_of_a_judge(pipe: Any, patch: Patch, tmp_path: Path) -> None:
    def more(concepts: Sequence[Concept], samples: int) -> dict[str, dict[str, list[Ask]]]:
        table = prompts(concepts, samples)
        table["star"]["neighbour"] = [PlainPrompt("a castle", 7, {"object": "castle"}), PlainPrompt("a tree", 8)]
        return table

    odd = replace(profile([True] * 4 + [False, False, True, True]), prompts=more)
    summary = make_report(pipe, patch, [Concept("star")], tmp_path, profile=odd, samples=2)
    assert list(summary["splits"]) == ["explicit", "unrelated"]
    assert "note" not in summary
    assert [set(entry) & {"before", "after"} for entry in summary["prompts"]][2:4] == [set(), set()]


def test_unscored_is_counted_and_an_unscored_split_is_absent(pipe: Any, patch: Patch, tmp_path: Path) -> None:
    values = [None, True, True, True] + [False, False, None, None]
    summary = make_report(pipe, patch, [Concept("star")], tmp_path, profile=profile(values), samples=2)
    assert list(summary["splits"]) == ["explicit"]
    assert summary["splits"]["explicit"]["before"]["n"] == 1
    assert summary["splits"]["explicit"]["before"]["unscored"] == 1
    assert "3 of 8 pictures could not be judged" in summary["note"]


def test_without_a_judge_there_are_pictures_and_no_numbers(pipe: Any, patch: Patch, tmp_path: Path) -> None:
    blind = replace(profile([]), judges=tuple, note="no judge fits")
    summary = make_report(pipe, patch, [Concept("star")], tmp_path, profile=blind, samples=2)
    assert (summary["splits"], summary["concepts"], summary["note"]) == ({}, {}, "no judge fits")
    assert (tmp_path / "grid.png").is_file()


def test_after_a_failure_the_pipeline_is_unedited(pipe: Any, patch: Patch, tmp_path: Path) -> None:
    class Broken(Script):
        def judge(self, images: Sequence[Image.Image], prompts: Sequence[Any]) -> list[Any]:
            if len(self.values) <= 4:
                raise RuntimeError("broken")
            return super().judge(images, prompts)

    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    broken = replace(profile([]), judges=lambda: [Broken([True] * 8)])
    with pytest.raises(RuntimeError, match="broken"):
        make_report(pipe, patch, [Concept("star")], tmp_path, profile=broken, samples=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in pipe.unet.state_dict().items())
    assert list(tmp_path.iterdir()) == []


def test_bad_samples_are_refused(pipe: Any, patch: Patch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        make_report(pipe, patch, [Concept("star")], tmp_path, profile=profile([]), samples=0)
