import pytest
import torch
from PIL import Image

from erasers.judges.oracle import Oracle
from erasers.worlds.shapes import render, vocabulary
from erasers.worlds.shapes.judge import HEADS, load_judge
from erasers.worlds.shapes.prompts import Prompt
from erasers.worlds.shapes.scenes import Scenes, sample_scenes

N = 600


def pictures(kind: str) -> tuple[torch.Tensor, Scenes]:
    generator = torch.Generator().manual_seed(900_001)
    scenes = sample_scenes(N, generator)
    if kind == "dissolved":
        return render.dissolved(scenes, generator), scenes
    if kind == "blank":
        away = torch.ones(N, render.SIDE, render.SIDE)
        return render.draw(scenes, away, torch.zeros(N, 1, 1), render.PALETTE[scenes.colour], generator), scenes
    return render.render(scenes, generator), scenes


@pytest.mark.parametrize("name", list(HEADS))
def test_the_judge_reads_fresh_renders(name: str) -> None:
    rendered, scenes = pictures("render")
    right = load_judge().read(rendered)[name].argmax(1) == getattr(scenes, name)
    assert float(right.float().mean()) >= 0.98


@pytest.mark.parametrize("kind", ["blank", "dissolved"])
def test_the_judge_says_none_when_nothing_is_there(kind: str) -> None:
    answers = load_judge().read(pictures(kind)[0])["object"]
    assert float((answers.argmax(1) == len(HEADS["object"]) - 1).float().mean()) >= 0.95


def to_image(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray(((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def test_verdicts_hold_every_wanted_value() -> None:
    rendered, scenes = pictures("render")
    images = [to_image(picture) for picture in rendered[:20]]
    names = [(vocabulary.OBJECTS[o], vocabulary.COLOURS[c]) for o, c, _ in scenes.triples()[:20]]
    right = [Prompt("", {"object": o, "colour": c}, 0) for o, c in names]
    wrong = [
        Prompt("", {"object": o, "colour": vocabulary.COLOURS[vocabulary.COLOURS.index(c) - 1]}, 0) for o, c in names
    ]
    oracle = Oracle()
    assert [verdict.value for verdict in oracle.judge(images, right)] == [True] * 20
    assert [verdict.value for verdict in oracle.judge(images, wrong)] == [False] * 20
    assert all(0 <= (verdict.probability or 0) <= 1 for verdict in oracle.judge(images, right))
    assert oracle.judge([], []) == []


def test_the_oracle_refuses_what_it_cannot_judge() -> None:
    oracle, image = Oracle(), Image.new("RGB", (32, 32))
    with pytest.raises(ValueError, match="one prompt for each picture"):
        oracle.judge([image], [])
    with pytest.raises(ValueError, match="64 x 64"):
        oracle.judge([Image.new("RGB", (64, 64))], [Prompt("", {}, 0)])
    with pytest.raises(ValueError, match="'dog'"):
        oracle.judge([image], [Prompt("", {"object": "dog"}, 0)])
