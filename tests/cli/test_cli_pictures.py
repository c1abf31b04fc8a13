"""The command on pipelines that draw from pictures: a report, pictures, and one line for what is missing or wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import LCMScheduler
from PIL import Image
from support.families.motion import build_animatediff
from support.families.variants import adapter, with_class
from support.selection import only
from support.tiny import make_unet

from erasers import Patch
from erasers.cli import app as cli

FIT = ("--concept", "star", "--anchor", "circle", "--method", "uce", "--out", "star.safetensors")
REPORT = (*FIT, "--report", "report", "--samples", "1")


PARTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "StableDiffusionInpaintPipeline": lambda pipe: {"unet": make_unet(32, in_channels=9)},
    "StableDiffusionInstructPix2PixPipeline": lambda pipe: {"unet": make_unet(32, in_channels=8)},
    "StableDiffusionAdapterPipeline": adapter,
}


@pytest.fixture(scope="module")
def model(pipes: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saves a tiny Stable Diffusion 1 of a class once; its scheduler draws in four steps."""
    folder = tmp_path_factory.mktemp("models")

    def build(name: str) -> Path:
        if not (folder / name).is_dir():
            pipe = pipes("sd1")
            parts = {
                **pipe.components,
                "scheduler": LCMScheduler(steps_offset=1),
                **PARTS.get(name, lambda _: {})(pipe),
            }
            with_class(name, parts).save_pretrained(folder / name)
        return folder / name

    return build


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photo, a mask, and what is neither."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save("photo.png")
    Image.new("L", (30, 30), 255).save("mask.png")
    Image.new("RGB", (5000, 8)).save("long.png")
    Image.new("RGB", (4, 4)).save("small.png")
    Image.new("RGB", (16, 16)).save("photo.gif")
    Path("text.png").write_text("text")
    Path("half.png").write_bytes(Path("photo.png").read_bytes()[:60])
    return tmp_path


def run(*arguments: object) -> int:
    return cli.run([str(argument) for argument in arguments])


CASES: dict[str, tuple[str, ...]] = {
    "StableDiffusionImg2ImgPipeline": ("--image", "photo.png", "--image-strength", "1"),
    "StableDiffusionInpaintPipeline": ("--image", "photo.png", "--mask", "mask.png"),
    "StableDiffusionInstructPix2PixPipeline": ("--image", "photo.png"),
    "StableDiffusionAdapterPipeline": ("--control-image", "photo.png"),
}


@pytest.mark.parametrize("name", only(CASES, "StableDiffusionInpaintPipeline"))
def test_a_report_apply_and_pictures(name, model, capsys):
    folder, pictures = model(name), CASES[name]
    assert run(*REPORT, "--model", folder, *pictures) == 0
    assert f"drawn     {name}, " in capsys.readouterr().out
    summary = json.loads(Path("report/summary.json").read_text())
    assert summary["drawn"].startswith(f"{name}, ")
    assert (summary["steps"], summary["guidance"]) == (4, 0.0)
    assert Patch.load("star.safetensors").meta["concepts"][0]["name"] == "star"

    drawn = ("--n", "2", "--steps", "2", *pictures)
    assert run("generate", "a star", "--model", folder, "--patch", "star.safetensors", *drawn) == 0
    assert f"2 pictures in out.png: {name}, 2 steps" in capsys.readouterr().out
    assert run("apply", "star.safetensors", "--model", folder, "--save", "erased") == 0
    assert f"a {name}" in capsys.readouterr().out
    assert run("generate", "a star", "--model", "erased", *drawn, "--out", "erased.png") == 0
    with Image.open("out.png") as both, Image.open("erased.png") as erased:
        assert both.width > erased.width / 2


@pytest.mark.parametrize("name", only(CASES, "StableDiffusionAdapterPipeline", "StableDiffusionInpaintPipeline"))
def test_what_is_missing_is_said_before_any_work(name, model, capsys):
    folder = model(name)
    for command in ((*REPORT, "--model", folder), ("generate", "a star", "--model", folder)):
        capsys.readouterr()
        assert run(*command) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {name} draws from ")
        assert len(error.splitlines()) == 1
        for option in (word for word in CASES[name] if word.startswith("--") and "strength" not in word):
            assert f"{option} FILE" in error
    assert not Path("star.safetensors").exists()
    assert not Path("report").exists()
    # Without pictures to draw, nothing is missing.
    assert run(*FIT, "--model", folder) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--image", "missing.png"), "missing.png: expected a picture, got no such file"),
        (("--image", "."), "expected a picture, got no such file"),
        (("--image", "text.png"), "expected a picture (PNG, JPEG, WEBP, BMP)"),
        (("--image", "half.png"), "half.png"),
        (("--image", "photo.gif"), "expected a picture (PNG, JPEG, WEBP, BMP)"),
        (("--image", "long.png"), "expected sides of 8 to 4096 pixels, got 5000 x 8"),
        (("--image", "small.png"), "got 4 x 4"),
        (("--mask", "mask.png"), "--mask goes with a picture; add --image FILE"),
        (("--image-strength", "0.5"), "--image-strength goes with a picture"),
        (("--image", "photo.png", "--image-strength", "0"), "above 0 and up to 1, got 0"),
        (("--image", "photo.png", "--image-strength", "nan"), "'--image-strength'"),
        (("--image", "photo.png", "--image-strength", "0.2", "--steps", "4"), "at least 1, got 4 times 0.2"),
        (("--image", "photo.png", "--out", "photo.png"), "--out photo.png is also --image photo.png"),
        (("--control-image", "photo.png"), "expected no --control-image for StableDiffusionPipeline"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_pictures_are_one_clear_line(arguments, words, capsys):
    before = set(Path().iterdir())
    assert run("generate", "a star", "--model", "shapes", *arguments) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert words in error
    assert set(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("name", "kind"),
    [("x.png", "PNG"), ("x.JPG", "JPEG"), ("x.jpeg", "JPEG"), ("x.webp", "WEBP"), ("x.bmp", "BMP"), ("x", "PNG")],
)
def test_a_picture_has_the_format_of_its_name(name, kind):
    assert run("generate", "a star", "--model", "shapes", "--n", "1", "--steps", "1", "--out", name) == 0
    with Image.open(name) as picture:
        assert (picture.format, picture.size) == (kind, (144, 144))


@pytest.mark.parametrize("command", [("generate", "a star"), ("explain", "--concept", "star")])
@pytest.mark.parametrize("name", ["x.gif", "x.safetensors", "map.of.it"])
def test_a_picture_of_another_name_is_refused(name, command, capsys):
    assert run(*command, "--model", "shapes", "--out", name) == 2
    ending = f".{name.rpartition('.')[2]}"
    words = f"expected a picture whose name ends in .png, .jpg, .jpeg, .webp, .bmp, got '{ending}'"
    assert words in capsys.readouterr().err
    assert not Path(name).exists()


def test_pictures_without_a_report_are_refused(capsys):
    assert run("--concept", "star", "--model", "shapes", "--image", "photo.png") == 2
    assert "--image is for the pictures of a report; add --report FOLDER" in capsys.readouterr().err


def test_a_photo_is_not_overwritten(capsys):
    photo = Path("photo.png").read_bytes()
    arguments = (
        "--concept",
        "star",
        "--model",
        "shapes",
        "--image",
        "photo.png",
        "--report",
        "r",
        "--out",
        "photo.png",
    )
    assert run(*arguments) == 2
    assert "--out photo.png is also --image photo.png" in capsys.readouterr().err
    assert Path("photo.png").read_bytes() == photo


@pytest.mark.full
def test_the_embedded_model_draws_from_pictures_too(capsys):
    assert run("--concept", "star", "--model", "shapes", "--image", "photo.png", "--report", "r", "--samples", "1") == 0
    assert "drawn     StableDiffusionImg2ImgPipeline, 20 steps, guidance 4, strength 0.8" in capsys.readouterr().out
    assert json.loads(Path("r/summary.json").read_text())["splits"]["explicit"]["before"]["n"] == 1


@pytest.mark.full
def test_animatediff_from_end_to_end(tmp_path, capsys):
    pipe = build_animatediff(tmp_path / "files")
    pipe.scheduler = LCMScheduler(steps_offset=1)
    pipe.save_pretrained("motion")
    assert run(*REPORT, "--model", "motion") == 0
    assert "drawn     AnimateDiffPipeline, 4 steps" in capsys.readouterr().out
    drawn = ("--n", "1", "--steps", "2", "--patch", "star.safetensors")
    assert run("generate", "a star", "--model", "motion", *drawn) == 0
    assert run("apply", "star.safetensors", "--model", "motion", "--save", "erased") == 0
    assert "a AnimateDiffPipeline" in capsys.readouterr().out
    assert run("export", "star.safetensors", "--model", "motion", "--form", "kohya", "--out", "lora") == 0


def test_a_task_of_pictures_is_refused(model, files, capsys):
    import yaml

    task: dict[str, Any] = {
        "name": "tiny",
        "version": 1,
        "model": str(model("StableDiffusionImg2ImgPipeline")),
        "cases": [["star"]],
        "samples": {"explicit": 1},
        "sampling": {"steps": 2, "guidance": 4.0, "batch": 2},
        "judge": "oracle/shapes",
        "scheme": {"pillars": ["erasure"]},
    }
    Path("task.yaml").write_text(yaml.safe_dump(task))
    capsys.readouterr()
    assert run("bench", "run", "task.yaml", "--out", "out") == 2
    assert "StableDiffusionImg2ImgPipeline draws from a picture" in capsys.readouterr().err
