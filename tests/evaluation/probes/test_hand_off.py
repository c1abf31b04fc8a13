"""Pictures by two denoisers in turn: the ends are those of each alone, and what lies between is of both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from PIL import Image
from support.tiny import same, weights

from erasers import Concept, Patch, get_eraser
from erasers.asks import PlainPrompt
from erasers.evaluation.drawing import generate
from erasers.evaluation.probes.hand_off import denoisers_from, diversity, handed_off, hybrid, in_two

ASKS = [PlainPrompt("a picture of star", seed) for seed in range(3)]
SETTINGS: dict[str, Any] = {"steps": 3, "guidance": 3.0, "batch": 2}


def alone(pipe: Any) -> list[bytes]:
    return bits([picture for some in generate(pipe, ASKS, **SETTINGS) for picture in some])


def bits(pictures: list[Image.Image]) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


@pytest.fixture
def patch(pipe: Any) -> Patch:
    return get_eraser("uce", cache=False).fit(pipe, Concept("star", anchor="circle", preserve=["a moon"]))


def test_the_unedited_model_begins_and_the_erased_one_ends(pipe, patch):
    before, plain = weights(pipe), alone(pipe)
    with patch.applied(pipe):
        erased = alone(pipe)
    drawn = {first: bits(handed_off(pipe, patch, ASKS, first=first, **SETTINGS)) for first in range(4)}
    assert drawn[0] == erased
    assert drawn[3] == plain
    assert len({tuple(pictures) for pictures in drawn.values()}) == 4
    assert same(weights(pipe), before)
    assert not patch.is_applied(pipe)


def test_an_edit_of_the_text_encoder_holds_behind_the_first_steps(pipe):
    """Prompts are encoded before the first step: what was read then is not what is read after the hand-off."""

    @contextmanager
    def edited() -> Iterator[None]:
        with torch.no_grad():
            pipe.text_encoder.final_layer_norm.weight.mul_(2)
        yield
        with torch.no_grad():
            pipe.text_encoder.final_layer_norm.weight.div_(2)

    plain = alone(pipe)
    with edited():
        erased = alone(pipe)
    drawn = {first: bits(in_two(pipe, ASKS, first=first, then=edited, **SETTINGS)) for first in range(4)}
    assert drawn[0] == erased
    assert drawn[3] == plain
    assert len({tuple(pictures) for pictures in drawn.values()}) == 4


def test_the_base_model_begins_and_the_distilled_one_ends(pipes):
    distilled, base = pipes("sd1"), pipes("sd1")
    with torch.no_grad():
        for weight in base.unet.parameters():
            weight.mul_(1.1)
    own = distilled.unet
    drawn = {first: bits(hybrid(distilled, base, ASKS, first=first, **SETTINGS)) for first in range(4)}
    assert drawn[0] == alone(distilled)
    assert drawn[3] == alone(base)
    assert len({tuple(pictures) for pictures in drawn.values()}) == 4
    assert distilled.unet is own


def test_a_failed_drawing_leaves_the_pipeline_as_it_was(pipe, patch, monkeypatch):
    before, decode = weights(pipe), pipe.vae.decode

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(pipe.vae, "decode", fail)
    with pytest.raises(RuntimeError, match="inside"):
        handed_off(pipe, patch, ASKS, first=1, **SETTINGS)
    monkeypatch.setattr(pipe.vae, "decode", decode)
    assert same(weights(pipe), before)
    assert not patch.is_applied(pipe)


def test_another_architecture_is_refused(pipes):
    with (
        pytest.raises(ValueError, match="expected two models of one architecture"),
        denoisers_from(pipes("sd1"), pipes("sd2")),
    ):
        pass
    with pytest.raises(ValueError, match="expected first of at least 0, got -1"):
        hybrid(pipes("sd1"), pipes("sd1"), ASKS, first=-1)


def test_diversity_is_the_mean_distance_of_pairs():
    features = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    pairs = [
        1 - torch.nn.functional.cosine_similarity(features[i], features[j], dim=0) for i in range(5) for j in range(i)
    ]
    assert diversity(features) == pytest.approx(float(sum(pairs) / len(pairs)), abs=1e-6)
    assert diversity(features[:1].repeat(4, 1)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="two pictures or more, got 1"):
        diversity(features[:1])
