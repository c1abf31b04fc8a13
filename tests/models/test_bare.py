"""Pipelines without their weights: of a folder only configurations and tokenizers are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families.all import FAMILIES

from erasers import ModelNotFound, load_pipeline
from erasers.cli import app as cli
from erasers.models.components import parameters_of


def saved(family: str, folder: Path) -> tuple[Any, Path]:
    """A pipeline, and its folder without the weights."""
    pipe, home = FAMILIES[family].build(folder), folder / "model"
    pipe.save_pretrained(home)
    for file in home.rglob("*.safetensors"):
        file.unlink()
    return pipe, home


def _schedule(pipe: Any) -> torch.Tensor:
    alphas = hasattr(pipe.scheduler, "alphas_cumprod")
    return torch.as_tensor(pipe.scheduler.alphas_cumprod if alphas else pipe.scheduler.sigmas)


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_a_folder_without_weights_has_their_shapes(family: str, tmp_path: Path) -> None:
    pipe, home = saved(family, tmp_path)
    bare = load_pipeline(home, dtype="bfloat16", device="meta")
    assert type(bare) is type(pipe)
    shapes = {name: (value.shape, value.device.type, value.dtype) for name, value in parameters_of(bare)}
    assert shapes == {name: (value.shape, "meta", torch.bfloat16) for name, value in parameters_of(pipe)}
    assert torch.equal(*(_schedule(loaded) for loaded in (bare, pipe)))
    assert bare.tokenizer("a star").input_ids == pipe.tokenizer("a star").input_ids
    with pytest.raises(ModelNotFound, match="cannot load"):
        load_pipeline(home)


def test_of_a_model_on_the_hub_no_weights_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, home = saved("sdxl", tmp_path)
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **more: asked.append(more) or str(home))
    assert load_pipeline("someone/model", device="meta", revision="v1").unet.device.type == "meta"
    [more] = asked
    assert more["revision"] == "v1"
    assert {Path(pattern).suffix for pattern in more["allow_patterns"]} == {".json", ".txt", ".model", ".jinja"}


def test_a_folder_that_is_refused_is_refused_without_weights_too(tmp_path: Path) -> None:
    _, home = saved("sdxl", tmp_path)
    (home / "unet" / "config.json").unlink()
    with pytest.raises(ModelNotFound, match="cannot load"):
        load_pipeline(home, device="meta")
    (home / "model_index.json").write_text('{"_class_name": ["pipeline", "Mine"]}')
    with pytest.raises(ModelNotFound, match="code of its own, which is not run"):
        load_pipeline(home, device="meta")


def test_a_dry_run_reads_no_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, home = saved("sdxl", tmp_path)
    monkeypatch.chdir(tmp_path)
    command = ["--concept", "star", "--model", str(home), "--method", "esd", "--dry-run"]
    assert cli.run(command) == 0
    output = capsys.readouterr().out
    assert "numbers of" in output
    assert "ms a denoiser call" not in output
    assert cli.run([*command, "--memory", "1MB"]) == 2
    assert "expected --memory of at least" in capsys.readouterr().err
