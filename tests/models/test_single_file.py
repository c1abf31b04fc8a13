"""Checkpoints in one file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.ldm import write_checkpoint
from support.tiny import draw

from erasers import Concept, ErasedPipeline, ModelNotFound, get_eraser, load_pipeline
from erasers.cli import app as cli

ASK = ("generate", "a picture of star", "--n", "1", "--steps", "2", "--size", "16")


@pytest.fixture
def pipe(pipes: Callable[[str], Any]) -> Any:
    return pipes("sd1")


@pytest.fixture
def config(pipe: Any, tmp_path: Path) -> Path:
    """What a diffusers folder says beside its weights."""
    pipe.save_pretrained(tmp_path / "config")
    for path in (tmp_path / "config").rglob("*.safetensors"):
        path.unlink()
    return tmp_path / "config"


@pytest.fixture
def checkpoint(pipe: Any, tmp_path: Path) -> Path:
    return write_checkpoint(pipe, tmp_path / "civitai.safetensors")


def test_a_checkpoint_is_the_model_that_it_was_written_from(pipe: Any, config: Path, checkpoint: Path) -> None:
    loaded = load_pipeline(checkpoint, config=config)
    assert type(loaded) is type(pipe)
    for name in ("unet", "vae", "text_encoder"):
        expected, got = pipe.components[name].state_dict(), loaded.components[name].state_dict()
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[key], got[key]) for key in expected)
    torch.testing.assert_close(draw(loaded), draw(pipe))
    assert load_pipeline(str(checkpoint), dtype="float16", config=str(config)).unet.dtype == torch.float16


def test_a_patch_of_the_folder_fits_its_checkpoint(pipe: Any, config: Path, checkpoint: Path) -> None:
    patch = get_eraser("uce").fit(pipe, Concept("star", anchor="circle"), progress=False)
    erased = ErasedPipeline.from_pretrained(checkpoint, patch, config=config)
    assert patch.is_applied(erased)


def test_the_command_takes_a_checkpoint(config: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parent)
    model = ("--model", checkpoint.name, "--config", "config")
    assert cli.run(["--concept", "star", "--anchor", "circle", *model, "--out", "star.safetensors"]) == 0
    assert cli.run([*ASK, *model, "--patch", "star.safetensors", "--out", "out.png"]) == 0
    assert cli.run(["apply", "star.safetensors", *model, "--save", "erased"]) == 0
    assert cli.run([*ASK, "--model", "erased", "--out", "erased.png"]) == 0
    assert cli.run(["export", "star.safetensors", *model, "--out", "lora"]) == 0


@pytest.mark.parametrize("drop", ["attn2.to_k", "cond_stage_model", "encoder.layers.1.", "first_stage_model", "middle"])
def test_a_checkpoint_that_lacks_weights_is_refused(drop: str, pipe: Any, config: Path, tmp_path: Path) -> None:
    path = write_checkpoint(pipe, tmp_path / "less.safetensors", drop)
    with pytest.raises(ModelNotFound, match="cannot load") as caught:
        load_pipeline(path, config=config)
    assert "\n" not in str(caught.value)


def test_without_its_configuration_the_way_out_is_said(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert cli.run([*ASK, "--model", str(checkpoint)]) == 2
    said = capsys.readouterr().err
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in said
    assert "--config FOLDER" in said
    assert said.count("\n") == 1


def test_the_configuration_comes_from_the_hub_or_its_cache(
    checkpoint: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetch(repository: str, *, allow_patterns: list[str]) -> str:
        asked.append(repository)
        assert not any("safetensors" in pattern or "bin" in pattern for pattern in allow_patterns)
        return str(config)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    load_pipeline(checkpoint)
    assert asked == ["stable-diffusion-v1-5/stable-diffusion-v1-5"]


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.gguf"])
def test_pickles_are_refused_with_the_way_out(name: str, tmp_path: Path, config: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / name)
    with pytest.raises(ModelNotFound, match=r"not read: get the \.safetensors file"):
        load_pipeline(tmp_path / name, config=config)


def test_pickles_beside_the_configuration_are_not_read(pipe: Any, config: Path, tmp_path: Path) -> None:
    path = write_checkpoint(pipe, tmp_path / "less.safetensors", "cond_stage_model")
    torch.save(pipe.text_encoder.state_dict(), config / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(ModelNotFound, match="text_encoder has pickles"):
        load_pipeline(path, config=config)


def test_what_is_no_checkpoint_is_one_line(checkpoint: Path, config: Path, tmp_path: Path) -> None:
    save_file({"unet.to_k.lora_A.weight": torch.ones(1)}, tmp_path / "lora.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    shutil.copytree(config, tmp_path / "folder")
    for model, options, words in (
        ("lora.safetensors", {}, "is a LoRA"),
        ("text.safetensors", {}, "fetch it again"),
        ("text.safetensors", {"config": config}, "cannot load"),
        ("civitai.safetensors", {"config": tmp_path / "no"}, "expected as config a diffusers folder"),
        ("civitai.safetensors", {"config": config, "variant": "fp16"}, "expected no variant"),
        ("folder", {"config": config}, "in one .safetensors file for config="),
    ):
        with pytest.raises(ModelNotFound, match=words) as caught:
            load_pipeline(tmp_path / model, **options)
        assert "\n" not in str(caught.value)
