"""Judges that say where: the place that a world has for a value, the boxes that a detector counts."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from erasers import worlds
from erasers.judges import get_judge
from erasers.judges.boxes import detector_of
from erasers.worlds.shapes.render import render
from erasers.worlds.shapes.scenes import Scenes


def picture(mark: int) -> Image.Image:
    """A red star on white, with or without a stamp."""
    star = Scenes(*(torch.tensor([value]) for value in (3, 0, 0, 0, 1, mark, mark)))
    pixels = ((render(star, torch.Generator().manual_seed(0))[0] + 1) * 127.5).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy())


def test_the_stamp_is_where_it_is_drawn():
    detect = detector_of(get_judge("oracle"), ["stamp"])
    with_, without = picture(1), picture(0)
    assert detect(without, "stamp") == []
    left, top, right, bottom = map(int, detect(with_, "stamp")[0])
    pixels = [
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(32, 32, 3) for image in (with_, without)
    ]
    changed = (pixels[0] != pixels[1]).any(dim=-1)
    assert changed[top:bottom, left:right].sum() == changed.sum() > 0
    assert changed[top, left]
    assert changed[bottom - 1, right - 1]


def test_what_may_be_anywhere_is_the_whole_picture():
    detect = detector_of(get_judge("oracle"), ["star", "heart"])
    assert detect(picture(0), "star") == [(0, 0, 32, 32)]
    assert detect(picture(0), "heart") == []


def test_a_judge_without_boxes_and_a_concept_that_is_not_seen_are_refused():
    class Mute:
        name, sees = "mute/1", {"object": ("star",)}

    with pytest.raises(ValueError, match="expected a judge that says where, such as oracle or nudenet, got mute/1"):
        detector_of(Mute(), ["star"])
    with pytest.raises(ValueError, match="expected a concept that oracle/shapes sees among circle.*got 'dog'"):
        detector_of(get_judge("oracle"), ["dog"])


def test_places_are_of_values_that_the_judge_sees():
    for world in map(worlds.get, worlds.list()):
        values = {value for answers in get_judge(world.judge).sees.values() for value in answers}
        assert set(world.places) <= values
