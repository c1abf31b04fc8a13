"""Erased pipelines in the user's hands: LoRAs of their own, and folders that load erased or not at all."""

from __future__ import annotations

import dataclasses
import fnmatch
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
from huggingface_hub import ModelCard
from support.families import t5
from support.families.base import draw
from support.hooked import (
    OPTIONS,
    PIPELINES,
    PROMPT,
    STOCK,
    Saved,
    add_by_hand,
    hook_patch,
    picture,
    same,
    style,
    weight_patch,
)
from support.selection import only

from erasers import ErasedPipeline, ModelNotFound, PatchError, load_pipeline
from erasers.folders import write as folders


@pytest.mark.parametrize("family", only(OPTIONS, "sd1", "flux"))
def test_a_lora_of_the_users_own_leaves_the_erasure_in_place(family: str, build: Callable[[str], Any]) -> None:
    pipe, reference = build(family), build(family)
    patch = weight_patch(pipe)
    lora = style(pipe)
    plain = picture(pipe, family)
    erased = picture(patch.apply(pipe), family)
    styled = picture(add_by_hand(patch.apply(reference), lora, 1.0), family)
    half = picture(add_by_hand(reference, lora, -0.5), family)
    assert (erased - plain).abs().max() > 0.01
    assert (styled - erased).abs().max() > 0.01
    assert (styled - picture(add_by_hand(build(family), lora, 1.0), family)).abs().max() > 0.01

    pipe.load_lora_weights(dict(lora), adapter_name="style")
    assert pipe.get_list_adapters() != {}
    assert same(picture(pipe, family), styled)
    pipe.set_adapters(["style"], [0.5])
    assert same(picture(pipe, family), half)
    pipe.disable_lora()
    assert same(picture(pipe, family), erased)
    pipe.enable_lora()
    pipe.unload_lora_weights()
    assert same(picture(pipe, family), erased)
    pipe.load_lora_weights(dict(lora), adapter_name="style")
    pipe.fuse_lora()
    assert same(picture(pipe, family), styled)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert same(picture(pipe, family), erased)


@pytest.mark.parametrize("family", OPTIONS)
def test_an_erased_pipeline_is_saved_with_a_lora_only_when_it_is_fused(
    family: str, build: Callable[[str], Any], tmp_path: Path
) -> None:
    pipe = build(family)
    patch = weight_patch(pipe)
    patch.apply(pipe)
    pipe.load_lora_weights(style(pipe), adapter_name="style")
    with pytest.raises(ValueError, match=r"not fused; call pipe\.fuse_lora"):
        ErasedPipeline.save_pretrained(pipe, tmp_path / "erased", [patch])
    assert not (tmp_path / "erased").exists()
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    expected = picture(pipe, family)
    saved = ErasedPipeline.save_pretrained(pipe, tmp_path / "erased", [patch])
    assert same(picture(diffusers.DiffusionPipeline.from_pretrained(saved), family), expected)


@pytest.mark.parametrize("family", only(OPTIONS, "sd1"))
def test_a_pipeline_with_hooks_loads_erased_or_not_at_all(family: str, save: Callable[[str], Saved]) -> None:
    saved = save(family)
    everybody = (diffusers.DiffusionPipeline, saved.stock, diffusers.AutoPipelineForText2Image)
    for cls in everybody:
        for options in ({}, {"variant": "unerased"}, {"trust_remote_code": True}, {"use_safetensors": False}):
            with pytest.raises((ValueError, OSError)):
                cls.from_pretrained(str(saved.folder), **options)
    for name in ("unet", "transformer", "vae", "text_encoder"):
        if hasattr(saved.load(), name):
            with pytest.raises(OSError, match="no file named"):
                type(getattr(saved.load(), name)).from_pretrained(str(saved.folder), subfolder=name)
    for cls in (diffusers.DiffusionPipeline, saved.stock):
        pipe = saved.load(cls)
        assert type(pipe).__name__ == f"Erased{saved.stock.__name__}"
        assert same(picture(pipe, family), saved.erased)
    for pipe in (load_pipeline(saved.folder), ErasedPipeline.from_pretrained(saved.folder)):
        assert type(pipe) is saved.stock
        assert same(picture(pipe, family), saved.erased)
        assert same(picture(saved.patch.remove(pipe), family), saved.plain)


@pytest.mark.parametrize("family", only(OPTIONS, "flux"))
@pytest.mark.parametrize("lost", ["erased_*.py", "erasure", "erasure/erasers_patches.py"])
def test_without_a_part_of_it_nothing_loads(family: str, lost: str, save: Callable[[str], Saved]) -> None:
    saved = save(family)
    (path,) = saved.folder.glob(lost)
    path.rename(saved.folder.parent / "lost")
    everybody = (diffusers.DiffusionPipeline, saved.stock, diffusers.AutoPipelineForText2Image)
    for cls in everybody:
        for options in ({}, {"trust_remote_code": True}):
            with pytest.raises((ValueError, OSError, TypeError)):
                cls.from_pretrained(str(saved.folder), **options)
    with pytest.raises((ValueError, OSError, TypeError)):
        saved.load()


@pytest.mark.parametrize("family", only(OPTIONS, "sd1"))
def test_a_single_file_pipeline_round_trips(
    family: str, build: Callable[[str], Any], save: Callable[[str], Saved], tmp_path: Path
) -> None:
    saved = save(family)
    pipe = saved.load()
    again = pipe.save_pretrained(tmp_path / "again")
    files = {path.relative_to(saved.folder) for path in saved.folder.rglob("*") if path.is_file()}
    assert files == {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    assert same(picture(dataclasses.replace(saved, folder=again).load(), family), saved.erased)
    assert same(picture(load_pipeline(again), family), saved.erased)
    assert same(picture(pipe, family), saved.erased)
    assert pipe.config["erasure"] == ("erasers.dropin", "Erasure")
    assert pipe.components.keys() == {*load_pipeline(again).components, "erasure"}
    assert same(picture(type(pipe)(**pipe.components), family), saved.erased)
    assert same(picture(saved.stock.from_pipe(pipe), family), saved.erased)
    plain = build(family)
    assert same(picture(plain, family), saved.plain)
    assert same(picture(type(pipe).from_pipe(plain, erasure=saved.patch), family), saved.erased)


@pytest.mark.parametrize("family", only(OPTIONS, "sd1"))
def test_the_single_files_are_those_of_the_repository(
    family: str, build: Callable[[str], Any], save: Callable[[str], Saved], tmp_path: Path
) -> None:
    saved = save(family)
    (file,) = saved.folder.glob("*.py")
    assert file.read_bytes() == (PIPELINES / file.name).read_bytes()
    build(family).save_pretrained(tmp_path / "base")
    saved.patch.save(tmp_path / "star.safetensors")
    custom = {"custom_pipeline": str(PIPELINES / file.name), "trust_remote_code": True}
    for erasure in (saved.patch, [str(tmp_path / "star.safetensors")]):
        pipe = diffusers.DiffusionPipeline.from_pretrained(str(tmp_path / "base"), **custom, erasure=erasure)
        assert same(picture(pipe, family), saved.erased)
    with pytest.raises(ValueError, match="erasure"):
        diffusers.DiffusionPipeline.from_pretrained(str(tmp_path / "base"), **custom)
    for nothing in (None, []):
        with pytest.raises(PatchError, match="expected patches as erasure of Erased"):
            diffusers.DiffusionPipeline.from_pretrained(str(tmp_path / "base"), **custom, erasure=nothing)


def test_every_single_file_is_tested() -> None:
    names = {folders.pipeline_file(type_)[0] for type_ in STOCK}
    assert {path.name for path in PIPELINES.glob("*.py")} == names


def test_a_family_without_a_file_in_the_repository_loads_likewise(tmp_path: Path) -> None:
    family = t5.FAMILIES["pixart"]
    pipe = family.build(tmp_path)
    patch = hook_patch(pipe)
    erased = draw(patch.apply(pipe), PROMPT, family.options)
    saved = ErasedPipeline.save_pretrained(pipe, tmp_path / "erased")
    assert same(draw(load_pipeline(saved), PROMPT, family.options), erased)
    options = {"variant": "unerased", "trust_remote_code": True}
    again = diffusers.DiffusionPipeline.from_pretrained(saved, **options)
    assert type(again).__name__ == "ErasedPixArtAlphaPipeline"
    assert same(draw(again, PROMPT, family.options), erased)


def test_the_files_say_what_to_install(
    save: Callable[[str], Saved], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saved = save("sd1")
    for name in [name for name in sys.modules if name.split(".")[0] == "erasers"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match="erasers"):
        saved.load()
    assert "pip install erasers" in caplog.text


def test_stock_diffusers_fetches_the_whole_folder_from_the_hub(
    save: Callable[[str], Saved], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save("sd1")
    names = [path.relative_to(saved.folder).as_posix() for path in saved.folder.rglob("*") if path.is_file()]

    def snapshot(repo: str, *, allow_patterns: list[str], ignore_patterns: list[str], **_: Any) -> str:
        for name in names:
            wanted = any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch.fnmatch(name, pattern) for pattern in ignore_patterns):
                (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(saved.folder / name, tmp_path / "cache" / name)
        return str(tmp_path / "cache")

    def download(repo: str, name: str, **_: Any) -> str:
        (tmp_path / "first").mkdir(exist_ok=True)
        return shutil.copyfile(saved.folder / name, tmp_path / "first" / Path(name).name)

    siblings = [SimpleNamespace(rfilename=name) for name in names]
    where = "diffusers.pipelines.pipeline_utils."
    monkeypatch.setattr(where + "model_info", lambda *_, **__: SimpleNamespace(siblings=siblings, sha="0"))
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.model_info", lambda *_, **__: SimpleNamespace(sha="0"))
    monkeypatch.setattr(where + "_resolve_revision", lambda *_, **__: None)
    for module in (where, "diffusers.utils.dynamic_modules_utils."):
        monkeypatch.setattr(module + "hf_hub_download", download)
    monkeypatch.setattr(where + "snapshot_download", snapshot)
    pipe = diffusers.DiffusionPipeline.from_pretrained("me/erased", variant="unerased", trust_remote_code=True)
    assert same(picture(pipe, "sd1"), saved.erased)
    for options in ({}, {"variant": "unerased"}, {"trust_remote_code": True}):
        with pytest.raises((ValueError, OSError)):
            diffusers.DiffusionPipeline.from_pretrained("me/erased", **options)
    with pytest.raises(ModelNotFound, match="fetch it and load the folder"):
        load_pipeline("me/erased")


def test_a_single_file_pipeline_is_pushed_whole(
    save: Callable[[str], Saved], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save("sd1")
    where = "diffusers.utils.hub_utils."
    monkeypatch.setattr(where + "create_repo", lambda repo, **_: SimpleNamespace(repo_id=repo))
    monkeypatch.setattr(where + "load_or_create_model_card", lambda *_, **__: ModelCard("a card"))
    monkeypatch.setattr(
        where + "upload_folder", lambda folder_path, **_: shutil.copytree(folder_path, tmp_path / "hub")
    )
    saved.load().push_to_hub("me/erased")
    assert same(picture(dataclasses.replace(saved, folder=tmp_path / "hub").load(), "sd1"), saved.erased)
