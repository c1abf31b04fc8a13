"""Directions of a concept, and what models can be brought to with them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.tiny import draw

from erasers import Concept
from erasers.evaluation.probes import capability as probe
from erasers.evaluation.probes.capability import RETRAINED, UNEDITED, Grid, capability, draw_capability, reading
from erasers.evaluation.probes.shifts import (
    Direction,
    Recorded,
    adding,
    changed,
    difference,
    random_like,
    sites_of,
)
from erasers.evaluation.scores.metrics import wilson
from erasers.judges import Verdict
from erasers.models.families import UnsupportedPipeline

STAR = Concept("star", anchor="circle", templates=("{}", "a {}", "a red {}", "a {} picture"))
SETTINGS: dict[str, Any] = {"steps": 2, "guidance": 3.0, "batch": 2, "size": None, "tokens": None}


def recorded(means: dict[float, float]) -> Recorded:
    record = Recorded()
    for time, value in means.items():
        record.add("mid_block", time, torch.full((1, 3), value - 1))
        record.add("mid_block", time, torch.full((1, 3), value + 1))
    return record


def test_a_direction_is_the_difference_of_means_at_each_time() -> None:
    direction = difference(recorded({9.0: 5.0, 1.0: 2.0}), recorded({9.0: 1.0, 1.0: 4.0}))
    assert direction.at("mid_block", 8.0).tolist() == [4.0] * 3
    assert direction.at("mid_block", 0.0).tolist() == [-2.0] * 3
    with pytest.raises(ValueError, match="the same times"):
        difference(recorded({9.0: 5.0}), recorded({8.0: 5.0}))


def test_a_random_direction_is_as_long() -> None:
    direction = Direction(torch.tensor([9.0, 1.0]), {"a": torch.arange(24.0).view(2, 3, 4)})
    random = random_like(direction, torch.Generator().manual_seed(0))
    lengths = [own.shifts["a"].flatten(1).norm(dim=1) for own in (direction, random)]
    torch.testing.assert_close(*lengths)
    assert not torch.allclose(random.shifts["a"], direction.shifts["a"])


def test_nothing_added_is_the_same_picture_to_the_bit(pipe: Any) -> None:
    before = draw(pipe)
    paths = [path for own in sites_of(pipe).values() for path in own]
    assert set(sites_of(pipe)) == {"text", "attention", "middle"}
    record = Recorded()
    with changed(pipe, paths, 1, record.add):
        assert torch.equal(draw(pipe), before)
    zero = difference(record, record)
    assert list(zero.shifts)[0] == "encoder_hidden_states"
    assert len(zero.times) == 2
    with changed(pipe, list(zero.shifts), 1, adding(zero, 3.0)):
        assert torch.equal(draw(pipe), before)
    assert torch.equal(draw(pipe), before)


@pytest.mark.parametrize("site", ["text", "attention", "middle"])
def test_a_direction_acts_on_the_prompt_alone(pipe: Any, site: str) -> None:
    """With a guidance scale of 1 nothing but the prompt is asked about; with more, its half of the batch is changed."""
    record, other = Recorded(), Recorded()
    paths = sites_of(pipe)[site]
    for prompt, own in (("a star", record), ("a circle", other)):
        with changed(pipe, paths, 1, own.add):
            draw(pipe, prompt)
    direction = difference(record, other)
    halves: list[torch.Tensor] = []

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        halves.append(kwargs["encoder_hidden_states"])

    before = draw(pipe, "a circle")
    with changed(pipe, list(direction.shifts), 1, adding(direction, 1.0)):
        handle = pipe.unet.register_forward_pre_hook(hook, with_kwargs=True)
        after = draw(pipe, "a circle")
        handle.remove()
    assert not torch.equal(before, after)
    if site == "text":
        states = pipe.encode_prompt(["a star"], "cpu", 1, True)
        torch.testing.assert_close(halves[0], torch.cat([states[1], states[0]]))
        torch.testing.assert_close(after, draw(pipe, "a star"))


def test_pipelines_that_draw_otherwise_are_refused(pipe: Any) -> None:
    record = Recorded()
    with pytest.raises(UnsupportedPipeline, match="in one batch"), changed(pipe, ["mid_block"], 2, record.add):
        draw(pipe)
    with changed(pipe, ["mid_block"], 1, record.add):
        draw(pipe, guidance_scale=1.0)
    assert not any(own._forward_hooks or own._forward_pre_hooks for own in pipe.unet.modules())


@pytest.mark.parametrize(
    ("named", "best", "floors", "expected"),
    [
        (18, 20, (0, 1), "still drawn"),
        (0, 20, (0, 1), "hidden"),
        (0, 1, (0, 1), "not told from the floor"),
        (0, 20, (19, 0), "not told from the floor"),
        (8, 20, (0, 0), "still drawn"),
    ],
)
def test_readings(named: int, best: int, floors: tuple[int, ...], expected: str) -> None:
    assert reading(wilson(named, 20), wilson(best, 20), [wilson(k, 20) for k in floors]) == expected


class _Judge:
    """Sees the concept where a picture is black."""

    name = "black"

    def judge(self, images: Any, prompts: Any) -> list[Verdict]:
        return [Verdict(image.getpixel((0, 0)) == (0, 0, 0)) for image in images]


def made_up(hides: Callable[[], str]) -> Any:
    """Stands for drawing: the concept is there where it is named and where its own direction is added."""

    def drawn(pipe: Any, asks: Any, settings: Any, paths: Any, change: Any) -> list[Image.Image]:
        rows = {path: torch.ones(len(asks), 4) * (1 + ("star" in asks[0].text)) for path in paths}
        added = [
            float((new - rows[path]).mean()) for path in paths if (new := change(path, 1.0, rows[path])) is not None
        ]
        named = "star" in asks[0].text
        kind = hides()
        shown = named and kind == "keeps" or kind != "removed" and bool(added) and min(added) > 0.9
        return [Image.new("RGB", (2, 2), "black" if shown else "white") for _ in asks]

    return drawn


def test_hidden_is_told_from_removed(pipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kind = ["keeps"]
    monkeypatch.setattr(probe, "_draw", made_up(lambda: kind[0]))

    class _As:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            kind[0] = self.name

        def __exit__(self, *_: object) -> None:
            kind[0] = "keeps"

    rows = {
        UNEDITED: nullcontext,
        RETRAINED: lambda: _As("removed"),
        "hides": lambda: _As("hides"),
        "removes": lambda: _As("removed"),
        "does nothing": nullcontext,
    }
    counted: list[int] = []
    grid = Grid(STAR, {"object": "star"}, samples=6, strengths=(0.5, 1.0), sites=("middle",))
    found = capability(pipe, rows, grid, _Judge(), SETTINGS, counted.append)  # type: ignore[arg-type]
    assert sum(counted) == len(rows) * grid.pictures(1)
    readings = {row: facts.get("reading") for row, facts in found["rows"].items()}
    assert readings == {
        UNEDITED: None,
        RETRAINED: None,
        "hides": "hidden",
        "removes": "not told from the floor",
        "does nothing": "still drawn",
    }
    assert found["rows"]["hides"]["best"] | {"site": "middle", "strength": 1.0} == found["rows"]["hides"]["best"]
    assert found["rows"]["hides"]["sites"]["middle"]["direction"][0]["value"] == 0
    assert found["rows"][UNEDITED]["floor"]["value"] == 0
    draw_capability(found, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as figure:
        assert figure.width > 400
    with pytest.raises(ValueError, match="expected sites among text, attention, middle"):
        capability(pipe, rows, Grid(STAR, {}, sites=("nowhere",)), _Judge(), SETTINGS)  # type: ignore[arg-type]


def test_real_drawing_of_a_tiny_model(pipe: Any) -> None:
    """The pictures of a row differ by the direction that is added, and what is fitted is not what is measured."""
    grid = Grid(STAR, {"object": "star"}, samples=2, strengths=(1.0,), sites=("attention",))
    fitted, measured = probe._pairs(grid)
    assert not {ask.seed for pair in fitted for ask in pair} & {ask.seed for pair in measured for ask in pair}
    assert not {pair[0].text for pair in fitted} & {pair[0].text for pair in measured}
    directions = probe._fitted(pipe, {"attention": sites_of(pipe)["attention"]}, fitted, SETTINGS)
    asks = [pair[1] for pair in measured]
    own = directions["attention"]
    plain = probe._draw(pipe, asks, SETTINGS, [], adding(own, 0.0))
    moved = probe._draw(pipe, asks, SETTINGS, list(own.shifts), adding(own, 1.0))
    assert len(plain) == len(moved) == 2
    assert all(a.tobytes() != b.tobytes() for a, b in zip(plain, moved, strict=True))
