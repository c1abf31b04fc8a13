"""The embedded models of transformers do what their cards say."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from support import REPOSITORY
from support.scripts import benchmark

import erasers
from erasers import worlds
from erasers.worlds.shapes.scenes import training_scenes
from erasers.worlds.shapes_llava.train import sight

CARDS = benchmark("transformers_card")
MODELS = benchmark("models")
NAMES = list(worlds.MODELS)
MOST = 16 * 2**20


def measured(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((REPOSITORY / "benchmarks/results" / f"{name}-model-card.json").read_text())
    return result


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_was_measured(name: str) -> None:
    folder, result = worlds.MODELS[name], measured(name)
    assert (folder / "README.md").read_text() == CARDS.card(name, result)
    files = [path.stat().st_size for path in folder.glob("*.safetensors")]
    assert sum(files) == result["bytes"] <= MOST


def test_answers_say_what_is_in_a_picture() -> None:
    """As the card says, and so do a few given anew."""
    said = measured("shapes-llava")["answers"]
    assert said["seen"]["object"]["low"] >= 0.85
    assert min(said["seen"][what]["low"] for what in ("colour", "style", "background", "stamp")) >= 0.9
    generator = torch.Generator().manual_seed(7)
    scenes = training_scenes(20, generator)
    texts = MODELS.answers(erasers.load_model("shapes-llava"), MODELS.pictured(scenes, generator))
    right = CARDS.right(texts, scenes)
    assert right["object"].value >= 0.8
    assert min(right[what].value for what in ("colour", "style", "background", "stamp")) >= 0.85


def test_an_answer_is_right_where_it_says_what_is_there_and_nothing_else() -> None:
    scenes = training_scenes(2, torch.Generator().manual_seed(0))
    texts = sight.answers(scenes)
    assert all(score.value == 1 for score in CARDS.right(texts, scenes).values())
    wrong = CARDS.right(["a picture", texts[1]], scenes)
    assert {wrong[what].value for what in ("object", "colour", "background", "all of it")} == {0.5}
    assert wrong["style"].value == 0.5 + 0.5 * (not scenes.style[0])


def test_pictures_show_what_was_asked_for() -> None:
    """As the card says, and so do a few given anew."""
    card = measured("shapes-janus")["generator"]
    assert card["seen"]["object"]["low"] >= 0.65
    assert min(card["seen"][what]["low"] for what in ("colour", "style")) >= 0.94
    pipe, judge = erasers.load_model("shapes-janus"), worlds.get("shapes").network()
    texts = [f"a {colour} {thing}" for thing in ("circle", "ring", "square") for colour in ("red", "blue", "green")]
    shown = judge.read(MODELS.drawn(pipe, texts, 7))
    asked = {"colour": [text.split()[1] for text in texts], "object": [text.split()[2] for text in texts]}
    right = {
        what: [
            judge.answers[what][k] == word for k, word in zip(shown[what].argmax(dim=1).tolist(), words, strict=True)
        ]
        for what, words in asked.items()
    }
    assert sum(right["colour"]) >= 8
    assert sum(right["object"]) >= 5


@pytest.mark.parametrize("name", ["nowhere", str(REPOSITORY / "docs")])
def test_a_model_that_is_not_there_is_told_with_those_that_are(name: str) -> None:
    with pytest.raises(erasers.ModelNotFound, match="expected a folder or 'shapes-janus' or 'shapes-llava'"):
        erasers.load_model(name)
