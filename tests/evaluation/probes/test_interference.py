"""What erasing a concept does to every other one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image

from erasers import Eraser, load_pipeline, worlds
from erasers.evaluation.probes import interference as probe
from erasers.evaluation.probes.interference import draw_interference, interference, likeness, mantel, spearman


@pytest.mark.parametrize(
    ("first", "second", "rho"),
    [
        ([1.0, 2.0, 3.0], [10.0, 20.0, 90.0], 1.0),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], -1.0),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0], 0.8),
        ([1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0], 1.0),
    ],
)
def test_rank_correlation_by_hand(first: list[float], second: list[float], rho: float) -> None:
    assert spearman(torch.tensor(first), torch.tensor(second)) == pytest.approx(rho)


def test_what_is_constant_has_no_correlation() -> None:
    assert math.isnan(spearman(torch.ones(3), torch.arange(3.0)))


def test_shuffles_tell_a_matrix_of_its_own_from_one_of_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix, other = torch.rand(2, 9, 9, generator=generator)
    rho, p = mantel(matrix, matrix**3)
    assert rho == pytest.approx(1.0)
    assert p < 0.002
    assert mantel(matrix, other)[1] > 0.02
    # The diagonal has no say.
    assert mantel(matrix + 9 * torch.eye(9), matrix)[0] == pytest.approx(1.0)


def test_a_name_is_most_like_its_synonym() -> None:
    world, names = worlds.get("shapes"), ["star", "heart", "red", "blue", "zorblat"]
    words = names + [world.synonyms(name)[0] for name in names]
    close = likeness(load_pipeline("shapes"), words)
    torch.testing.assert_close(close.diag(), torch.ones(10))
    torch.testing.assert_close(close, close.T)
    others = close - 2 * torch.eye(10)
    assert others.argmax(dim=1)[:5].tolist() == [5, 6, 7, 8, 9]


class Confused:
    """Erases a concept by drawing circles for it, and loses the cross with the star."""

    def __init__(self, state: dict[str, str]) -> None:
        self.state = state

    def config(self) -> dict[str, Any]:
        return {}

    def fit(self, pipe: Any, concept: Any, **settings: Any) -> Any:
        lost = {"star": {"star": "circle", "cross": "square"}, "heart": {"heart": "circle"}}.get(concept.name, {})
        return Lost(self.state, lost)


class Lost:
    """A patch that draws other things."""

    def __init__(self, state: dict[str, str], lost: dict[str, str]) -> None:
        self.state, self.lost = state, lost

    @contextmanager
    def applied(self, pipe: Any) -> Iterator[None]:
        self.state.update(self.lost)
        yield
        self.state.clear()


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The pipeline draws a true picture of what is asked for, or of what this puts in its place."""
    world, state = worlds.get("shapes"), dict[str, str]()

    def generate(pipe: Any, asks: Any, **settings: Any) -> Any:
        for ask in asks:
            yield world.draw([(ask.text, {key: state.get(value, value) for key, value in ask.wants.items()})], [])

    monkeypatch.setattr(probe, "generate", generate)
    return state


def test_what_goes_with_the_erased_concept_is_found(state: dict[str, str], tmp_path: Path) -> None:
    counted: list[int] = []
    pipe, world, emitters, erasers = load_pipeline("shapes"), worlds.get("shapes"), ["star", "heart"], Confused(state)
    rows = {"confused": cast("Eraser", erasers)}
    found = interference(pipe, rows, world, emitters, {}, samples=3, advance=counted.append)
    assert sum(counted) == probe.pictures(world, emitters, 3, 1)
    kept, drift = (found["rows"]["confused"][name] for name in ("kept", "drift"))
    assert len(found["receivers"]) == len(kept["star"]) == 21
    lost = {("star", "star"), ("star", "cross"), ("heart", "heart")}
    assert {(emitter, name) for emitter, own in kept.items() for name, share in own.items() if share == 0} == lost
    assert all(drift[emitter][name] > 0 for emitter, name in lost)
    assert drift["star"]["circle"] == drift["heart"]["cross"] == 0
    worst = found["rows"]["confused"]["worst"][0]
    assert (worst["erased"], worst["asked"], worst["kept"]) == ("star", "cross", 0.0)
    assert "correlation" not in found["rows"]["confused"]
    assert found["likeness"]["star"]["star"] == 1.0
    draw_interference(found, tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as figure:
        assert figure.width > 600


def test_all_concepts_have_a_correlation(state: dict[str, str]) -> None:
    world = worlds.get("shapes")
    emitters = list(dict.fromkeys(world.concept(word).name for word in world.words))
    rows = {"confused": cast("Eraser", Confused(state))}
    found = interference(load_pipeline("shapes"), rows, world, emitters, {}, samples=1)
    assert found["receivers"] == emitters
    assert set(found["rows"]["confused"]["correlation"]) == {"rho", "p"}
