"""What else a patch took along."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from erasers import worlds
from erasers.evaluation.probes import blindspots as probe
from erasers.evaluation.probes.blindspots import SCALE, area, asked, blindspots, delta, draw_blindspots, reader_of


def codes() -> torch.Tensor:
    return torch.rand(20, 5, generator=torch.Generator().manual_seed(0))


def test_the_same_pictures_are_as_before_to_the_bit() -> None:
    assert delta(codes(), codes()).tolist() == [0.5] * 5


def test_a_feature_that_is_gone_is_below_and_the_others_stay() -> None:
    edited = codes()
    edited[:, 2] = 0
    found = delta(edited, codes())
    assert found[2] < 0.5
    assert found[[0, 1, 3, 4]].tolist() == [0.5] * 4


def test_swapped_sets_swap_the_ends() -> None:
    torch.testing.assert_close(delta(2 * codes(), codes()), 1 - delta(codes(), 2 * codes()))


def test_half_of_a_concept_is_where_the_tail_begins() -> None:
    before, after = torch.full((4, 1), SCALE), torch.tensor([[SCALE], [SCALE], [0.0], [0.0]])
    assert float(delta(after, before)) == pytest.approx(0.1)
    assert float(delta(0 * before, before)) == pytest.approx(1 / 82)


def test_area_by_hand() -> None:
    scores = torch.tensor([[3.0, 0.0, 1.0], [2.0, 0.0, 5.0], [1.0, 0.0, 2.0], [0.0, 0.0, 3.0]])
    assert area(scores, torch.tensor([True, True, False, False])).tolist() == [1.0, 0.5, 0.5]


def test_prompts_that_name_an_erased_concept_beside_another_are_left_out() -> None:
    world = worlds.get("shapes")
    table = asked(world, ["star"], 3)
    assert len(table) == 21
    assert all(len(own) == 3 for own in table.values())
    for name, own in table.items():
        stars = [any(word in ask.text for word in ("star", "pentagram", "five pointed")) for ask in own]
        assert stars == [name == "star"] * 3


@pytest.fixture(scope="module")
def read() -> probe.Reader:
    """Of fewer pictures and steps than by default: it knows some concepts alone."""
    prompts = {name: own[0] for name, own in asked(worlds.get("shapes"), ["star"], 1).items()}
    training = replace(probe._TRAINING, steps=150, prompts=128, warmup=20, dead_after=5_000)
    return reader_of(worlds.get("shapes"), prompts, training, 12)


def test_true_pictures_are_read_as_what_they_are(read: probe.Reader) -> None:
    world = worlds.get("shapes")
    assert {"star", "circle", "zorblat"} <= set(read.features) < set(read.areas)
    assert min(read.areas[name] for name in read.features) >= probe.LEAST > min(read.areas.values())
    place = list(read.features).index("star")
    stars, circles = (
        read(world.draw([(f"a {word}", {"object": word})] * 6, []))[:, place].mean() for word in ("star", "circle")
    )
    assert float(stars) > 0.7 * SCALE
    assert abs(float(circles)) < 0.3 * SCALE


def test_a_model_that_draws_circles_for_stars_is_seen(
    read: probe.Reader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The pipeline draws true pictures: of what is asked for, or with circles for stars."""
    world, state = worlds.get("shapes"), {"star": "star"}

    def generate(pipe: Any, asks: Any, **settings: Any) -> Any:
        wants = [{key: state.get(value, value) for key, value in ask.wants.items()} for ask in asks]
        yield world.draw([(ask.text, own) for ask, own in zip(asks, wants, strict=True)], [])

    @contextmanager
    def confused() -> Any:
        state["star"] = "circle"
        yield
        state["star"] = "star"

    @contextmanager
    def plain() -> Any:
        yield

    monkeypatch.setattr(probe, "generate", generate)
    rows = {probe.UNEDITED: plain, "same": plain, "confused": confused}
    counted: list[int] = []
    found = blindspots(None, rows, world, ["star"], {}, samples=3, advance=counted.append, read=read)
    assert sum(counted) == 4 * 21 * 3
    assert list(found["rows"]) == [probe.CONTROL, "same", "confused"]
    same, wrong = found["rows"]["same"], found["rows"]["confused"]
    assert {value for row in same["map"].values() for value in row.values()} == {0.5}
    assert wrong["erased"]["star"] < probe.SUPPRESSED
    assert wrong["map"]["star"]["circle"] > probe.EXAGGERATED
    assert {value for name, row in wrong["map"].items() for value in row.values() if name != "star"} == {0.5}
    assert wrong["suppressed"] == []
    draw_blindspots(found, tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as figure:
        assert figure.width > 600
