"""The command from end to end on folders of other families: erase with a report, look, apply, export, draw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.families.all import FAMILIES
from support.families.base import draw
from support.selection import only

from erasers import Patch, get_eraser, load_pipeline
from erasers.cli import app as cli

# Family -> side of its pictures, and ports of its patch.
CASES = {"sdxl": (16, {"text"}), "sd3": (32, {"text", "pooled"}), "flux": (32, {"text", "pooled"})}


@pytest.fixture(params=only(CASES, "flux"))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str, tmp_path: Path) -> Path:
    FAMILIES[family].build(tmp_path / "files").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run(*arguments: object) -> int:
    return cli.run([str(argument) for argument in arguments])


def test_erase_apply_export_generate(
    family: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    side, kinds = CASES[family]
    length = FAMILIES[family].options.get("max_sequence_length", "none")
    concept = [
        "--concept",
        "star",
        "--anchor",
        "circle",
        "--preserve",
        "moon",
        "--set",
        f"max_sequence_length={length}",
    ]
    strong = ["--set", "ridge=0.001", "--set", "rows=all", "--set", "rounds=1"]
    code = run(
        *concept, *strong, "--model", model, "--report", "report", "--judge", "none", "--samples", 1, "--size", side
    )
    assert code == 0
    assert json.loads((tmp_path / "report" / "summary.json").read_text())["splits"] == {}
    assert Image.open(tmp_path / "report" / "grid.png").width > 2 * side

    file = tmp_path / "star-rece.safetensors"
    patch = Patch.load(file)
    assert set(patch.meta["groups"]) == kinds
    assert run("inspect", file) == 0
    said = capsys.readouterr().out
    assert "star  -> 'circle'" in said
    assert "ports     text: " in said
    assert "heuristic" not in said

    plain, folders = load_pipeline(model), {"erased": tmp_path / "erased", "lora": tmp_path / "lora"}
    assert run("apply", file, "--model", model, "--save", folders["erased"]) == 0
    assert run("export", file, "--model", model, "--form", "lora", "--out", folders["lora"]) == 0
    options = {**FAMILIES[family].options, "guidance_scale": 1.0}
    before = draw(plain, "a picture of star", options)
    with patch.applied(plain):
        baked = draw(plain, "a picture of star", options)
    assert (before - baked).abs().max() > 1e-3
    torch.testing.assert_close(
        draw(load_pipeline(folders["erased"]), "a picture of star", options), baked, rtol=0, atol=2e-5
    )
    plain.load_lora_weights(str(folders["lora"]))
    torch.testing.assert_close(draw(plain, "a picture of star", options), baked, rtol=0, atol=2e-5)

    drawn = run("generate", "a star", "--model", model, "--patch", file, "--n", "2", "--steps", "2", "--size", side)
    assert drawn == 0
    assert Image.open(tmp_path / "out.png").width > 2 * side


@pytest.mark.filterwarnings("ignore:the (text|pooled) ports are not edited")
def test_ports_behind_mixed_states_are_called_a_heuristic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = FAMILIES["flux"].build(tmp_path / "files")
    get_eraser("uce", ports=("text", "joint"), max_sequence_length=16).fit(pipe, "star").save(
        tmp_path / "x.safetensors"
    )
    assert run("inspect", tmp_path / "x.safetensors") == 0
    assert "ports     joint: 2; a heuristic" in capsys.readouterr().out


def test_a_family_that_nobody_knows_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    unet = UNet2DModel(sample_size=8, norm_num_groups=4, layers_per_block=1, **blocks)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "model")
    capsys.readouterr()
    assert run("--concept", "star", "--model", tmp_path / "model") == 2
    error = capsys.readouterr().err
    assert "expected a pipeline of a supported family (Stable Diffusion" in error.replace("\n", " ")
    assert "Traceback" not in error
