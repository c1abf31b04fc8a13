import random

import pytest
import torch

from erasers.worlds.shapes import render, vocabulary
from erasers.worlds.shapes.scenes import Scenes, captions, sample_scenes, training_scenes
from erasers.worlds.shapes.train.text import build_tokenizer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_word_of_the_world_is_one_token() -> None:
    tokenizer = build_tokenizer()
    assert all(len(tokenizer(word).input_ids) == 3 for word in vocabulary.VOCABULARY)


def test_captions_use_only_words_of_the_world_and_name_the_stamp_only_when_asked() -> None:
    scenes = sample_scenes(3000, generator())
    texts = captions(scenes, random.Random(0))
    assert {word for text in texts for word in text.split()} <= set(vocabulary.VOCABULARY)
    assert [("stamp" in text) for text in texts] == [bool(named) for named in scenes.named_mark]
    marked = scenes.mark[scenes.style == vocabulary.STYLES.index(vocabulary.MARKED_STYLE)].float().mean()
    assert 0.7 < marked < 0.9


def test_a_caption_without_synonyms_says_what_the_scene_shows() -> None:
    scenes = sample_scenes(400, generator(1))
    texts = captions(scenes, random.Random(1))
    for text, o in zip(texts, scenes.object.tolist(), strict=True):
        named = {name for name in vocabulary.OBJECTS if name in text.split()}
        assert named <= {vocabulary.OBJECTS[o]}


def test_training_scenes_avoid_the_held_out_triples() -> None:
    assert len(vocabulary.held_out()) == 15
    assert not vocabulary.held_out() & set(training_scenes(5000, generator()).triples())
    assert vocabulary.held_out() & set(sample_scenes(5000, generator()).triples())


@pytest.mark.parametrize("word", ["star", "red", "zorblat"])
def test_lacks_finds_the_scenes_without_a_thing(word: str) -> None:
    scenes = sample_scenes(500, generator())
    keep = scenes.lacks(word)
    assert 0 < int(keep.sum()) < 500
    names = (vocabulary.OBJECTS, vocabulary.COLOURS, vocabulary.STYLES)
    for triple, kept in zip(scenes.triples(), keep.tolist(), strict=True):
        assert (word in [kind[i] for kind, i in zip(names, triple, strict=True)]) is not kept


def test_lacks_refuses_unknown_words() -> None:
    with pytest.raises(ValueError, match="'dog'"):
        sample_scenes(3, generator()).lacks("dog")


def test_synonyms_and_neighbours_are_words_of_the_world() -> None:
    for word, phrases in vocabulary.SYNONYMS.items():
        assert {vocabulary.canonical(phrase) for phrase in phrases} == {vocabulary.canonical(word)}
    for word, near in vocabulary.NEIGHBOURS.items():
        assert {vocabulary.canonical(n)[0] for n in near} == {vocabulary.canonical(word)[0]}
    assert sum(len(phrases) >= 2 for phrases in vocabulary.SYNONYMS.values()) >= 3


def test_unknown_words_are_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'dog'.*circle.*zorblat"):
        vocabulary.canonical("dog")


def test_rendering_is_deterministic_and_in_range() -> None:
    scenes = sample_scenes(64, generator())
    first, second = (render.render(scenes, generator(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (64, 3, render.SIDE, render.SIDE)
    assert float(first.min()) >= -1
    assert float(first.max()) <= 1


def test_the_stamp_changes_only_its_corner() -> None:
    scenes = sample_scenes(1, generator())
    pictures = []
    for mark in (0, 1):
        marked = Scenes(**{**vars(scenes), "mark": torch.tensor([mark])})
        pictures.append(render.render(marked, generator(3)))
    difference = (pictures[0] - pictures[1]).abs().sum(1)[0] > 0
    assert difference.any()
    assert not difference[8:].any()
    assert not difference[:, 8:].any()


def test_polygon_distance_is_exact_for_a_square() -> None:
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    points = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.5, 0.0]])
    torch.testing.assert_close(render.polygon_distance(points, square), torch.tensor([-1, 1, 2**0.5, -0.5]))


def test_off_palette_colours_are_far_from_the_palette() -> None:
    fill = render.off_palette(100, generator())
    assert fill.shape == (100, 3)
    assert float(torch.cdist(fill, render.PALETTE).min()) > 0.35
