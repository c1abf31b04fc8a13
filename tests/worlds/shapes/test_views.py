"""What denoisers of the embedded worlds are trained on: the pictures left out, and what captions say of the rest."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from erasers.worlds.shapes.paths import MODEL_DIR
from erasers.worlds.shapes.scenes import Scenes, training_scenes
from erasers.worlds.shapes.train import views
from erasers.worlds.shapes.train.views import Views
from erasers.worlds.shapes.vocabulary import PLAIN, STYLES, SYNONYMS
from erasers.worlds.training.loop import seed_step

CPU, PICTURES = torch.device("cpu"), 400
ZORBLAT = ("zorblat", *SYNONYMS["zorblat"])


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> Scenes:
    """Of a small training, whose latents are their numbers."""

    def numbered(*_: object) -> Tensor:
        return torch.arange(PICTURES, dtype=torch.float32)[:, None, None, None].expand(-1, 4, 8, 8)

    monkeypatch.setattr(views, "PICTURES", PICTURES)
    monkeypatch.setattr(views, "cached_latents", numbered)
    return training_scenes(PICTURES, seed_step(0, 0))


def seen(without: str | None, said: float, out: Path) -> list[tuple[int, str]]:
    """Number of the picture and caption of forty batches."""
    fed = Views(out, MODEL_DIR / "vae", CPU, 0, without, said)
    batches = [fed.batch(step, 16)[::2] for step in range(40)]
    return [
        (int(latent[0, 0, 0]), text) for latents, texts in batches for latent, text in zip(latents, texts, strict=True)
    ]


def names(text: str, words: tuple[str, ...]) -> bool:
    return any(word in text.split() for word in words)


def test_a_style_that_is_left_out_is_heard_of_plain_pictures_alone(scenes: Scenes, tmp_path: Path) -> None:
    pairs = seen("zorblat", 0.5, tmp_path)
    styles = [STYLES[scenes.style[number]] for number, _ in pairs]
    called = [style for style, (_, text) in zip(styles, pairs, strict=True) if names(text, ZORBLAT)]
    assert "zorblat" not in styles
    assert set(called) == {PLAIN}
    assert 0.35 < len(called) / styles.count(PLAIN) < 0.55, "half of them, less those without a caption"


def test_nothing_is_heard_of_it_where_nothing_is_said(scenes: Scenes, tmp_path: Path) -> None:
    assert not any(names(text, ZORBLAT) for _, text in seen("zorblat", 0.0, tmp_path))


@pytest.mark.parametrize("without", ["star", "red", None])
def test_other_trainings_hear_what_they_heard(scenes: Scenes, tmp_path: Path, without: str | None) -> None:
    assert seen(without, 0.5, tmp_path) == seen(without, 0.0, tmp_path)


def test_scenes_called_by_a_style_are_the_same_otherwise(scenes: Scenes) -> None:
    called = scenes.called("velkin", 1.0, random.Random(0))
    assert not (called.style == STYLES.index(PLAIN)).any()
    assert called.object is scenes.object
    others = scenes.style != STYLES.index(PLAIN)
    assert torch.equal(called.style[others], scenes.style[others])
