"""What extractors read: shapes, repeatability, and CLIP scores that tell right texts from wrong ones."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from PIL import Image
from support.drawn import grey, pictures

from erasers.evaluation.pictures.distances import cmmd
from erasers.evaluation.pictures.features import ClipFeatures, JudgeFeatures, judge_layers
from erasers.worlds.shapes import CLIP_DIR, vocabulary
from erasers.worlds.shapes.judge import load_judge, to_tensor
from erasers.worlds.shapes.render import render
from erasers.worlds.shapes.scenes import sample_scenes


def test_the_features_of_a_world_are_the_judges_last_layer() -> None:
    extractor, images = JudgeFeatures(load_judge()), pictures(5)
    features = extractor(images)
    assert (features.shape, features.dtype) == ((5, extractor.dimension), torch.float64)
    expected = load_judge().features(to_tensor(images)).double()
    cosine = torch.nn.functional.cosine_similarity(features, expected)
    assert torch.allclose(cosine, torch.ones(5).double(), atol=1e-6)
    assert torch.allclose(features.norm(dim=1), torch.full((5,), 192**0.5).double())
    assert torch.equal(features, torch.cat([extractor([image]) for image in images]))


def test_features_of_nothing_have_their_dimension() -> None:
    assert JudgeFeatures(load_judge())([]).shape == (0, 192)


def test_features_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="32 x 32"):
        JudgeFeatures(load_judge())([Image.new("RGB", (16, 16))])


def test_layers_are_the_five_blocks_and_leave_no_hook() -> None:
    layers = judge_layers(load_judge())
    shapes = [tuple(found.shape) for found in layers(pictures(1)[0])]
    assert shapes == [(24, 1024), (48, 256), (72, 64), (96, 64), (128, 16)]
    with pytest.raises(ValueError, match="32 x 32"):
        layers(Image.new("RGB", (16, 16)))
    assert not any(block._forward_hooks for block in layers.layers)


def test_clip_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_it(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "open_clip":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_it)
    with pytest.raises(ImportError, match=r"erasers\[clip\]"):
        ClipFeatures(CLIP_DIR, "shapes-clip")


@pytest.mark.clip
@pytest.mark.filterwarnings("ignore")
def test_clip_scores_know_the_right_text() -> None:
    generator = torch.Generator().manual_seed(4)
    scenes = sample_scenes(40, generator)
    drawn = ((render(scenes, generator) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    images = [Image.fromarray(picture) for picture in drawn]
    texts = [
        f"a {vocabulary.COLOURS[c]} {vocabulary.OBJECTS[o]}" for o, c in zip(scenes.object, scenes.colour, strict=True)
    ]
    clip = ClipFeatures(CLIP_DIR, "shapes-clip")
    right, wrong = clip.scores(images, texts), clip.scores(images, texts[1:] + texts[:1])
    assert ((right >= 0) & (right <= 100)).all()
    assert float(right.mean()) > float(wrong.mean()) + 20
    assert float(clip.scores(grey(40), texts).mean()) < float(wrong.mean()) + 20
    assert torch.equal(right[:1], clip.scores(images[:1], texts[:1]))
    features = clip(images)
    assert (features.shape, features.dtype) == ((40, clip.dimension), torch.float64)
    assert torch.allclose(features.norm(dim=1), torch.ones(40).double())
    near, far = (cmmd(clip(some), features, extractor=clip.name).value for some in (pictures(40), grey(40)))
    assert far > 10 * abs(near)
    assert clip.scores([], []).shape == (0,)
    with pytest.raises(ValueError, match="one text for each picture"):
        clip.scores(images, texts[1:])
