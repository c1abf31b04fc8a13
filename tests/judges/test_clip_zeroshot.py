"""The judge with a stand-in for open_clip; with the extra, the model of the embedded world."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from support.judging import COLOURS, clip_folder

from erasers.judges import get_judge
from erasers.judges.clip_zeroshot import ClipZeroShot, spell
from erasers.judges.weights import file_hashes
from erasers.worlds.shapes import CLIP_DIR, render, vocabulary
from erasers.worlds.shapes.prompts import Prompt
from erasers.worlds.shapes.scenes import sample_scenes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return clip_folder(tmp_path / "clip", monkeypatch)


def ask(**wants: str) -> Any:
    return SimpleNamespace(wants=wants)


def picture(red: int, green: int, blue: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (red, green, blue))


CLASSES = {"colour": list(COLOURS), "warmth": {"warm": "red", "cold": ["blue", "green"]}}


def test_the_most_likely_value_counts(folder: Path) -> None:
    judge = get_judge("clip_zeroshot/stub", model=folder, classes=CLASSES)
    assert judge.name == "clip_zeroshot/stub"
    assert judge.sees == {"colour": ("red", "green", "blue"), "warmth": ("warm", "cold")}
    images = [picture(255, 10, 0), picture(10, 255, 0), picture(255, 0, 10)]
    prompts = [ask(colour="red"), ask(colour="red"), ask(colour="red", warmth="cold")]
    verdicts = judge.judge(images, prompts)
    assert [verdict.value for verdict in verdicts] == [True, False, False]
    embedding = torch.nn.functional.normalize(torch.tensor([255.0, 10, 0]), dim=0)
    share = (torch.tensor(2.0).exp() * embedding).softmax(0)[0]
    assert verdicts[0].probability == pytest.approx(float(share), abs=1e-3)
    # Several wants: the product.
    single = [judge.judge([images[2]], [prompt])[0] for prompt in (ask(colour="red"), ask(warmth="cold"))]
    assert verdicts[2].probability == pytest.approx(float(single[0].probability) * float(single[1].probability))


def test_with_a_threshold_the_most_likely_value_need_not_count(folder: Path) -> None:
    plain, sure = (
        ClipZeroShot("stub", model=folder, classes=CLASSES, threshold=threshold) for threshold in (None, 0.999)
    )
    red = picture(255, 10, 0)
    assert plain.judge([red], [ask(colour="red")])[0].value is True
    assert sure.judge([red], [ask(colour="red")])[0].value is False
    low = ClipZeroShot("stub", model=folder, classes=CLASSES, threshold=0.1)
    assert low.judge([picture(255, 240, 0)], [ask(colour="green")])[0].value is True
    assert (sure.name, plain.fingerprint.threshold) == ("clip_zeroshot/stub@0.999", None)
    assert plain.fingerprint.digest != sure.fingerprint.digest


def test_texts_are_in_the_fingerprint(folder: Path) -> None:
    digests = {
        ClipZeroShot("stub", model=folder, classes=CLASSES, templates=templates).fingerprint.digest
        for templates in (["a {}"], ["the {}"], ["a {}", "the {}"])
    }
    assert len(digests) == 3
    judge = ClipZeroShot("stub", model=folder, classes=CLASSES, templates=["a {}"])
    assert judge.fingerprint.classes["warmth"] == {"warm": ["a red"], "cold": ["a blue", "a green"]}
    assert judge.fingerprint.files == file_hashes(folder)


def test_an_embedding_that_is_no_number_is_no_success(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = ClipZeroShot("stub", model=folder, classes=CLASSES)
    monkeypatch.setattr(judge, "_preprocess", lambda image: torch.full((3, 1, 1), float("nan")))
    (verdict,) = judge.judge([picture(0, 0, 0)], [ask(colour="red")])
    assert (verdict.value, verdict.reason) == (None, "the judge's score is nan")


@pytest.mark.parametrize(
    ("classes", "templates", "match"),
    [
        ({"object": ["star"]}, ["a {}"], "at least two values of 'object'"),
        ({"object": {"star": [], "ring": "ring"}}, ["a {}"], "with words for each"),
        ({}, ["a {}"], "expected properties"),
        (CLASSES, ["a picture"], r"one \{\} each"),
        (CLASSES, [], r"one \{\} each"),
    ],
)
def test_texts_must_tell_values_apart(classes: Any, templates: list[str], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        spell(classes, templates)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": 1.0}, "between 0 and 1, got 1.0"),
        ({"profile": "mine"}, "a model and classes for clip_zeroshot/mine"),
        ({"profile": "shapes", "model": "x"}, "another profile name"),
        ({"profile": "a b", "model": ".", "classes": CLASSES}, "without slashes and blanks"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], match: str, folder: Path) -> None:
    if options.get("model") == ".":
        options = options | {"model": folder}
    with pytest.raises(ValueError, match=match):
        ClipZeroShot(**options)


def test_text_towers_of_the_hub_are_refused(folder: Path) -> None:
    config = {"model_cfg": {"text_cfg": {"hf_model_name": "some/encoder"}}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="some/encoder of the Hub"):
        ClipZeroShot("stub", model=folder, classes=CLASSES)


def test_a_model_of_the_hub_is_loaded_at_its_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def fetch(repo: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repo, revision))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    commit = "0123456789abcdef0123456789abcdef01234567"
    judge = ClipZeroShot("stub", model="some/model", revision=commit, classes=CLASSES)
    assert judge.fingerprint == ClipZeroShot("stub", model=folder, classes=CLASSES).fingerprint
    assert asked == [("some/model", commit)]
    with pytest.raises(ValueError, match="40 hex digits"):
        ClipZeroShot("stub", model="some/model", classes=CLASSES)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"weights as \.safetensors"):
        ClipZeroShot("stub", model=folder, classes=CLASSES)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r"erasers\[clip\]"):
        get_judge("clip_zeroshot/shapes")


@pytest.mark.clip
@pytest.mark.filterwarnings("ignore")
def test_the_model_of_the_world_sees_its_properties() -> None:
    judge = get_judge("clip_zeroshot/shapes")
    generator = torch.Generator().manual_seed(31)
    scenes = sample_scenes(120, generator)
    pixels = ((render.render(scenes, generator) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    images = [Image.fromarray(p) for p in pixels]
    words = {"object": vocabulary.OBJECTS, "colour": vocabulary.COLOURS, "style": vocabulary.STYLES}
    for name, least in {"object": 0.8, "colour": 0.97, "style": 0.93}.items():
        prompts = [Prompt("", {name: words[name][i]}, 0) for i in getattr(scenes, name).tolist()]
        verdicts = judge.judge(images, prompts)
        assert sum(verdict.value is True for verdict in verdicts) >= least * len(images)
        assert verdicts[:5] == [judge.judge([images[k]], [prompts[k]])[0] for k in range(5)]
    assert judge.fingerprint.files == file_hashes(CLIP_DIR)
