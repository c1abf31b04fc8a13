"""Loading and saving pipelines."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from erasers import Concept, ErasedPipeline, ModelNotFound, Patch, PatchError, get_eraser, load_pipeline
from erasers.patch import applied_patches
from erasers.pipeline import _explain


@pytest.fixture
def folder(pipe: Any, tmp_path: Path) -> Path:
    pipe.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def patch(pipe: Any) -> Patch:
    return get_eraser("uce").fit(pipe, Concept("star", anchor="circle"))


def test_a_folder_loads_as_the_stock_class_in_the_type_asked_for(folder: Path) -> None:
    pipe = load_pipeline(folder, dtype="float16")
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.float16
    assert load_pipeline(str(folder)).unet.dtype == torch.float32
    assert load_pipeline(folder, dtype=torch.float64, device="cpu").unet.dtype == torch.float64


def test_the_embedded_model_loads_in_float32_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    pipe = load_pipeline("shapes")
    assert pipe.unet.dtype == pipe.text_encoder.dtype == pipe.vae.dtype == torch.float32
    assert "safety" not in capfd.readouterr().err


def test_erased_equals_load_and_apply(folder: Path, patch: Patch, tmp_path: Path) -> None:
    patch.save(tmp_path / "star.safetensors")
    expected = patch.apply(load_pipeline(folder)).unet.state_dict()
    for patches in ([patch], patch, [tmp_path / "star.safetensors"], str(tmp_path / "star.safetensors")):
        erased = ErasedPipeline.from_pretrained(folder, patches=patches)
        assert type(erased).__name__ == "StableDiffusionPipeline"
        assert all(torch.equal(expected[name], tensor) for name, tensor in erased.unet.state_dict().items())


@pytest.mark.full
def test_a_saved_erased_pipeline_loads_without_this_library(folder: Path, patch: Patch, tmp_path: Path) -> None:
    erased = ErasedPipeline.from_pretrained(folder, patches=[patch])
    saved = ErasedPipeline.save_pretrained(erased, tmp_path / "erased", [patch])
    code = (
        "import sys, torch; from diffusers import StableDiffusionPipeline\n"
        f"pipe = StableDiffusionPipeline.from_pretrained({str(saved)!r}, dtype=torch.float32)\n"
        "print(sum(p.double().abs().sum().item() for p in pipe.unet.parameters()), 'erasers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    total, imported = done.stdout.split()
    assert float(total) == pytest.approx(
        sum(p.double().abs().sum().item() for p in erased.unet.parameters()), rel=1e-12
    )
    assert imported == "False"
    record = json.loads((saved / "erasure.json").read_text())
    assert record["patches"][0]["concepts"][0]["name"] == "star"
    assert record["patches"][0]["sha256"] == patch.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "erased"]


def test_a_patch_that_a_folder_carries_is_not_applied_again(folder: Path, patch: Patch, tmp_path: Path) -> None:
    saved = ErasedPipeline.save_pretrained(patch.apply(load_pipeline(folder)), tmp_path / "erased", [patch])
    for force in (False, True):
        with pytest.raises(PatchError, match=r"erased carries Patch\(uce: 'star'.*erasure\.json"):
            ErasedPipeline.from_pretrained(saved, patches=[patch], force=force)
    other = get_eraser("uce").fit(load_pipeline(saved), Concept("red", anchor="blue"))
    ErasedPipeline.from_pretrained(saved, patches=[other])
    (saved / "erasure.json").unlink()
    with pytest.raises(PatchError, match="other weights"):
        ErasedPipeline.from_pretrained(saved, patches=[patch])


def test_a_folder_that_is_not_empty_is_never_touched(pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for target in (tmp_path / "full", tmp_path / "full" / "mine.txt"):
        with pytest.raises(FileExistsError, match="new or empty folder"):
            ErasedPipeline.save_pretrained(pipe, target)
    with pytest.raises(FileNotFoundError, match="create it first"):
        ErasedPipeline.save_pretrained(pipe, tmp_path / "no" / "folder")
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]


def test_an_empty_folder_is_used(pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (ErasedPipeline.save_pretrained(pipe, tmp_path / "empty") / "model_index.json").is_file()


def test_unfused_adapters_are_refused(pipe: Any, tmp_path: Path) -> None:
    from peft import LoraConfig

    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"]))
    with pytest.raises(ValueError, match="fuse_lora"):
        ErasedPipeline.save_pretrained(pipe, tmp_path / "erased")
    assert list(tmp_path.iterdir()) == []


def test_a_patch_for_another_base_is_refused(folder: Path, patch: Patch, tmp_path: Path) -> None:
    other = load_pipeline(folder)
    with torch.no_grad():
        for parameter in other.unet.parameters():
            parameter.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(PatchError, match="other weights"):
        ErasedPipeline.from_pretrained(tmp_path / "other", patches=[patch])
    ErasedPipeline.from_pretrained(tmp_path / "other", patches=[patch], force=True)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("./nowhere", "no model folder"),
        ("/no/such/folder", "no model folder"),
        ("", "no model folder"),
        ("a/b/c", "no model folder"),
        (Path("nowhere"), "no model folder"),
    ],
)
def test_a_missing_folder_is_one_line(model: str | Path, words: str) -> None:
    with pytest.raises(ModelNotFound, match=words) as caught:
        load_pipeline(model)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no model_index\.json"):
        load_pipeline(tmp_path)
    (tmp_path / "model.ckpt").write_text("")
    with pytest.raises(ModelNotFound, match="is a file"):
        load_pipeline(tmp_path / "model.ckpt")
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ModelNotFound, match="cannot load") as caught:
        load_pipeline(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_truncated_model_is_refused(folder: Path) -> None:
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelNotFound, match="cannot load"):
        load_pipeline(folder)


def test_pickles_and_foreign_code_are_refused(folder: Path) -> None:
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelNotFound, match="cannot load"):
        load_pipeline(folder)
    for option in ({"use_safetensors": False}, {"trust_remote_code": True}, {"custom_pipeline": "x"}):
        with pytest.raises(ValueError, match="expected"):
            load_pipeline(folder, **option)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"float32, float16.*'int8'"):
        load_pipeline("shapes", dtype="int8")


def test_offline_names_the_embedded_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match="--model shapes") as caught:
        load_pipeline("CompVis/stable-diffusion-v1-4", cache_dir=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_an_unknown_hub_model_is_told_from_a_lost_connection() -> None:
    class RepositoryNotFoundError(OSError): ...

    class ConnectTimeout(OSError): ...

    lost, unknown = OSError("details"), OSError("details")
    lost.__cause__, unknown.__cause__ = ConnectTimeout(), RepositoryNotFoundError()
    assert "cannot be reached" in _explain("x/y", lost)
    assert "check the spelling" in _explain("x/y", unknown)
    assert _explain("x/y", OSError("first\nsecond")) == "cannot load 'x/y': first (OSError)"


def test_a_pipeline_says_what_it_carries(pipes: Any) -> None:
    pipe, other = pipes("sd1"), pipes("sd1")
    first = get_eraser("uce").fit(pipe, Concept("star", anchor="circle"))
    second = get_eraser("uce").fit(pipe, Concept("red", anchor="blue"))
    assert applied_patches(pipe) == []
    second.apply(pipe)
    first.apply(pipe, strength=0.5)
    assert applied_patches(pipe) == [(second, 1.0), (first, 0.5)]
    assert applied_patches(copy.deepcopy(pipe)) == applied_patches(pipe)
    assert first.is_applied(pipe)
    assert second.is_applied(pipe)
    assert not first.is_applied(other)
    assert not first.is_applied(SimpleNamespace())
    second.remove(pipe)
    assert [first.is_applied(pipe), second.is_applied(pipe)] == [True, False]
    pipe.unet.load_state_dict(other.unet.state_dict())
    assert not first.is_applied(pipe)
    first.apply(other, strength=0)
    assert first.is_applied(other)
