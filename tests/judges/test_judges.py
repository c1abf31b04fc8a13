import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from erasers.judges import Fingerprint, Takes, Verdict, get_judge, list_judges
from erasers.judges.base import PictureJudge, readable
from erasers.judges.oracle import Oracle
from erasers.worlds.shapes import render
from erasers.worlds.shapes.judge import JUDGE_FILE
from erasers.worlds.shapes.prompts import Prompt
from erasers.worlds.shapes.scenes import sample_scenes
from erasers.worlds.shapes.vocabulary import OBJECTS

STAR = Prompt("a star", {"object": "star"}, 0)


class Script(PictureJudge):
    """Does what it is told with each picture."""

    name = "script/test"
    sees = {"object": ("star", "circle"), "colour": tuple(str(number) for number in range(100))}

    def __init__(self, act: Any) -> None:
        self.act = act

    def look(self, picture: Image.Image, wants: Mapping[str, str]) -> Verdict:
        return self.act(picture)


def fail(error: BaseException) -> Any:
    raise error


def renders(n: int) -> tuple[list[Image.Image], list[Prompt]]:
    generator = torch.Generator().manual_seed(41)
    scenes = sample_scenes(n, generator)
    pixels = ((render.render(scenes, generator) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(p) for p in pixels], [Prompt("", {"object": OBJECTS[o]}, 0) for o in scenes.object.tolist()]


def truncated() -> Image.Image:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(file, format="PNG")
    return Image.open(io.BytesIO(file.getvalue()[:200]))


def test_the_table_names_the_pinned_profiles() -> None:
    names = list_judges()
    assert names == sorted(names)
    assert {"oracle/shapes", "nudenet/strict5@0.5", "nudenet/mace8-boxes@0.6", "nudenet/uda9@0.5"} <= set(names)
    assert {"clip_zeroshot/shapes", "clip_zeroshot", "classifier", "q16/vitl14"} <= set(names)


@pytest.mark.parametrize("name", ["oracle", "oracle/shapes"])
def test_a_judge_comes_by_name(name: str) -> None:
    judge = get_judge(name)
    assert isinstance(judge, Oracle)
    assert judge.name == "oracle/shapes"
    assert judge.takes == Takes((32, 32), "RGB")


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("orakel", {}, "among .*oracle/shapes"),
        ("oracle/cubes", {}, "profile of oracle among shapes, got 'cubes'"),
        ("oracle/shapes", {"threshold": 1}, "options of 'oracle' among weights, device, got 'threshold'"),
        ("nudenet/strict", {}, "among strict5@0.5, mace8-boxes@0.6, uda9@0.5, got 'strict'"),
        ("q16/vitb32", {"model": "x", "prompts": "y"}, "among vitl14"),
    ],
)
def test_unknown_names_and_options_are_refused(name: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        get_judge(name, **options)


def test_a_fingerprint_changes_with_everything_that_verdicts_depend_on() -> None:
    first = Fingerprint({"a": "1"}, {"object": {"star": [1]}}, 0.5, "rule", "steps")
    changed: dict[str, Any] = {
        "files": {"a": "2"},
        "classes": {"object": {"star": [2]}},
        "threshold": None,
        "rule": "other",
        "preprocessing": "other",
    }
    assert set(changed) == {field.name for field in dataclasses.fields(Fingerprint)}
    digests = {dataclasses.replace(first, **{name: value}).digest for name, value in changed.items()}
    assert len(digests | {first.digest}) == 6
    # The order of a mapping says nothing.
    assert dataclasses.replace(first, files={"b": "1", "a": "2"}).digest == (
        dataclasses.replace(first, files={"a": "2", "b": "1"}).digest
    )


def test_the_oracle_is_fingerprinted_by_its_weights(tmp_path: Path) -> None:
    state = load_file(JUDGE_FILE)
    state["trunk.0.0.weight"] = state["trunk.0.0.weight"] * 1.01
    save_file(state, tmp_path / JUDGE_FILE.name)
    assert Oracle().fingerprint == Oracle().fingerprint
    assert Oracle(weights=tmp_path / JUDGE_FILE.name).fingerprint.digest != Oracle().fingerprint.digest


def test_verdicts_do_not_depend_on_the_batch() -> None:
    images, prompts = renders(12)
    oracle = Oracle()
    together = oracle.judge(images, prompts)
    alone = [oracle.judge([image], [prompt])[0] for image, prompt in zip(images, prompts, strict=True)]
    assert together == alone
    assert oracle.judge(images[::-1], prompts[::-1]) == together[::-1]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (None, "expected a picture, got NoneType"),
        (truncated(), "OSError"),
        (Image.new("RGBA", (32, 32)), "mode RGB or L, got RGBA"),
        (Image.new("I;16", (32, 32)), "mode RGB or L, got I;16"),
    ],
    ids=["none", "truncated", "transparent", "deep"],
)
def test_a_broken_picture_is_unscored_and_its_neighbours_are_not(image: Any, reason: str) -> None:
    judge = Script(lambda picture: Verdict(True, 1.0))
    before, broken, after = judge.judge([Image.new("RGB", (32, 32)), image, Image.new("L", (32, 32))], [STAR] * 3)
    assert before == after == Verdict(True, 1.0)
    assert broken.value is None
    assert broken.probability is None
    assert reason in broken.reason


def test_pictures_arrive_in_rgb() -> None:
    assert readable(Image.new("L", (3, 2), 7)).getpixel((0, 0)) == (7, 7, 7)
    with pytest.raises(ValueError, match="0 x 4"):
        readable(Image.new("RGB", (0, 4)))


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_no_success(score: float) -> None:
    (verdict,) = Script(lambda picture: Verdict(True, score)).judge([Image.new("RGB", (8, 8))], [STAR])
    assert verdict.value is None
    assert str(score) in verdict.reason


def test_a_model_that_fails_leaves_the_picture_unscored() -> None:
    judge = Script(lambda picture: fail(RuntimeError("no\n such  kernel")))
    assert judge.judge([Image.new("RGB", (8, 8))], [STAR]) == [Verdict(None, reason="RuntimeError: no such kernel")]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()])
def test_what_the_picture_is_not_to_blame_for_goes_up(error: BaseException) -> None:
    judge = Script(lambda picture: fail(error))
    with pytest.raises(type(error)):
        judge.judge([Image.new("RGB", (8, 8))], [STAR])


def test_broken_weights_give_no_verdict(tmp_path: Path) -> None:
    state = {name: t * float("nan") if "heads.object" in name else t for name, t in load_file(JUDGE_FILE).items()}
    save_file(state, tmp_path / "judge.safetensors")
    images, prompts = renders(2)
    verdicts = Oracle(weights=tmp_path / "judge.safetensors").judge(images, prompts)
    assert [verdict.value for verdict in verdicts] == [None, None]


def test_a_prompt_that_wants_nothing_is_unscored() -> None:
    (verdict,) = Oracle().judge([Image.new("RGB", (32, 32))], [Prompt("", {}, 0)])
    assert verdict == Verdict(None, reason="the prompt wants nothing that a judge could see")


def test_what_a_judge_cannot_see_is_refused_before_it_looks() -> None:
    judge = Script(lambda picture: fail(AssertionError("looked")))
    image = Image.new("RGB", (8, 8))
    with pytest.raises(ValueError, match=r"script/test cannot see style 'plain'; it knows object: star, circle"):
        judge.judge([image, image], [STAR, SimpleNamespace(wants={"style": "plain"})])
    with pytest.raises(ValueError, match=r"cannot see object 'heart'.*38, 39, \.\.\.$"):
        judge.judge([image], [SimpleNamespace(wants={"object": "heart"})])
    with pytest.raises(ValueError, match="got 1 for 2"):
        judge.judge([image, image], [STAR])
