"""What a folder of an erased pipeline holds, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.hooked import (
    OPTIONS,
    PIPELINES,
    PROMPT,
    Saved,
    hook_patch,
    in_turn,
    mixed_patch,
    picture,
    same,
    style,
    weight_patch,
    weights_of,
)
from support.selection import only

from erasers import ErasedPipeline, ModelNotFound, Patch, PatchError, load_pipeline
from erasers.cli import app as cli
from erasers.patch import applied_patches


@pytest.mark.parametrize("family", only(OPTIONS, "sd1"))
def test_edits_of_weights_are_baked_beside_hooks(family: str, build: Callable[[str], Any], tmp_path: Path) -> None:
    pipe = build(family)
    plain = picture(pipe, family)
    patches = [weight_patch(pipe, seed=1), mixed_patch(pipe), hook_patch(pipe)]
    erased = picture(in_turn(pipe, *patches, strength=0.5), family)
    assert not same(plain, erased)
    saved = ErasedPipeline.save_pretrained(pipe, tmp_path / "erased")
    record = json.loads((saved / "erasure" / "erasure.json").read_text())["patches"]
    assert [(entry["sha256"], entry["strength"]) for entry in record] == [(patch.digest, 0.5) for patch in patches]
    assert ["hooks" in entry for entry in record] == [False, True, True]
    again = load_pipeline(saved)
    assert same(picture(again, family), erased)
    baked = [patch.remove(again) for patch, _ in applied_patches(again)] and picture(again, family)
    assert not same(baked, erased)
    assert same(baked, picture(in_turn(build(family), *patches[:1], weights_of(patches[1]), strength=0.5), family))
    with pytest.raises(PatchError, match="carries Patch"):
        ErasedPipeline.from_pretrained(saved, patches=patches[1:2])


def test_hooks_that_weights_hold_are_baked(build: Callable[[str], Any], tmp_path: Path) -> None:
    pipe = build("sd1")
    patches = [hook_patch(pipe), weight_patch(pipe)]
    erased = picture(in_turn(pipe, *patches), "sd1")
    saved = ErasedPipeline.save_pretrained(pipe, tmp_path / "erased", patches)
    pipe = diffusers.DiffusionPipeline.from_pretrained(saved)
    assert type(pipe) is diffusers.StableDiffusionPipeline
    assert same(picture(pipe, "sd1"), erased)


@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_hooks_survive_a_lora_that_is_fused(family: str, build: Callable[[str], Any], tmp_path: Path) -> None:
    pipe = build(family)
    patch = hook_patch(pipe).apply(pipe)
    pipe.load_lora_weights(style(pipe))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    erased = picture(pipe, family)
    saved = ErasedPipeline.save_pretrained(pipe, tmp_path / "erased")
    assert same(picture(load_pipeline(saved), family), erased)
    assert type(patch) is type(pipe)


def test_weights_in_shards_load_erased(
    save: Callable[[str], Saved], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved = save("flux")
    pipe = saved.load()
    for name in ("transformer", "text_encoder_2"):
        model = getattr(pipe, name)
        whole = model.save_pretrained
        monkeypatch.setattr(
            model,
            "save_pretrained",
            lambda folder, whole=whole, **options: whole(folder, max_shard_size="20KB", **options),
        )
    pipe.save_pretrained(tmp_path / "again", safe_serialization=True)
    assert len(list((tmp_path / "again" / "transformer").glob("*.safetensors"))) > 1
    assert same(picture(load_pipeline(tmp_path / "again"), "flux"), saved.erased)


def test_other_types_load_erased(save: Callable[[str], Saved]) -> None:
    saved = save("sd1")
    for dtype in ("float16", "float64"):
        pipe = load_pipeline(saved.folder, dtype=dtype)
        assert pipe.unet.dtype == getattr(torch, dtype)
        assert [patch.digest for patch, _ in applied_patches(pipe)] == [saved.patch.digest]
        assert applied_patches(saved.load(dtype=pipe.unet.dtype)) != []


def test_a_single_file_pipeline_without_hooks_is_saved_as_the_stock_class(
    build: Callable[[str], Any], tmp_path: Path
) -> None:
    build("sd1").save_pretrained(tmp_path / "base")
    custom = {"custom_pipeline": str(PIPELINES / "erased_stable_diffusion.py"), "trust_remote_code": True}
    patch = weight_patch(build("sd1"))
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "base", **custom, erasure=patch)
    erased = picture(pipe, "sd1")
    again = diffusers.DiffusionPipeline.from_pretrained(pipe.save_pretrained(tmp_path / "erased"))
    assert type(again) is diffusers.StableDiffusionPipeline
    assert same(picture(again, "sd1"), erased)
    for options in ({"safe_serialization": False}, {"variant": "fp16"}):
        with pytest.raises(ValueError, match="expected safe_serialization=True and variant=None"):
            pipe.save_pretrained(tmp_path / "pickled", **options)
    patch.remove(pipe)
    with pytest.raises(PatchError, match="whose patches were removed"):
        pipe.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "pickled").exists()
    assert not (tmp_path / "plain").exists()


def damage(folder: Path, how: str) -> None:
    record, patch = folder / "erasure" / "erasure.json", folder / "erasure" / "patches.d" / "0.safetensors"
    if how == "no record":
        record.unlink()
    elif how == "no patches":
        record.write_text('{"patches": []}')
    elif how == "bad record":
        record.write_text('{"patches": [{"hooks": 1}]}')
    elif how == "deep record":
        record.write_text("[" * 100_000)
    elif how == "huge strength":
        record.write_text('{"patches": [{"hooks": "x", "strength": 1' + "0" * 400 + "}]}")
    elif how == "lost patch":
        patch.unlink()
    elif how == "other patch":
        old = Patch.load(patch)
        Patch({name: 2 * tensor for name, tensor in old.tensors.items()}, old.meta).save(patch)
    elif how == "other weights":
        (path,) = (folder / "unet").glob("*.safetensors")
        tensors = load_file(path)
        save_file({name: 2 * tensor for name, tensor in tensors.items()}, path, {"format": "pt"})
    elif how == "unknown class":
        index = folder / "model_index.json"
        index.write_text(index.read_text().replace("ErasedStableDiffusionPipeline", "ErasedDiffusionModel"))


def as_before(folder: Path) -> None:
    """Make a folder like those that were saved without sha256 of its files."""
    record = folder / "erasure" / "erasure.json"
    entries = json.loads(record.read_text())
    del entries["files"]
    record.write_text(json.dumps(entries))
    for path in (folder / "erasure" / "patches.d").glob("*.safetensors"):
        Patch.load(path).save(path)


def edit_record(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "erasure" / "erasure.json"
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


def refused(folder: Path, words: str) -> None:
    with pytest.raises(ModelNotFound, match=words) as caught:
        load_pipeline(folder)
    assert "\n" not in str(caught.value)


NO_SUMS = "expected sha256 of all files in .*erasure.json, got none"
# What is wrong -> what is said of a folder of before, and of one with the sums of its files.
DAMAGE = {
    "no record": ("got no .*erasure.json; fetch the whole folder again",) * 2,
    "no patches": ("expected patches in .*, got none", NO_SUMS),
    "bad record": ("erasure.json is damaged", NO_SUMS),
    "deep record": ("erasure.json is damaged",) * 2,
    "huge strength": ("erasure.json is damaged",) * 2,
    "lost patch": (
        "0.safetensors, which does not exist",
        "expected 'erasure/patches.d/0.safetensors' in .*got no such file",
    ),
    "other patch": (
        "0.safetensors is not the patch of the record",
        "'erasure/patches.d/0.safetensors' in .* is not the file that was saved",
    ),
    "other weights": (
        "fitted on other weights",
        "'unet/.*unerased.safetensors' in .* is not the file that was saved",
    ),
    "unknown class": ("does not have; upgrade it", "'model_index.json' in .* is not the file that was saved"),
}


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_folder_is_refused(how: str, before: bool, save: Callable[[str], Saved]) -> None:
    saved = save("sd1")
    if before:
        as_before(saved.folder)
        assert same(picture(load_pipeline(saved.folder), "sd1"), saved.erased)
    damage(saved.folder, how)
    refused(saved.folder, DAMAGE[how][0 if before else 1])
    with pytest.raises((ValueError, OSError, AttributeError)):
        saved.load()


@pytest.mark.parametrize(
    "name",
    [
        "erased_stable_diffusion.py",
        "erasure/erasers_patches.py",
        "text_encoder/model.unerased.safetensors",
        "vae/config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_one_byte_in_any_file_is_noticed(name: str, save: Callable[[str], Saved]) -> None:
    saved = save("sd1")
    path = saved.folder / name
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    refused(saved.folder, f"'{name}' in .* is not the file that was saved")


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "more.py", "unet/pytorch_model.bin"])
def test_a_file_that_was_added_is_noticed(name: str, save: Callable[[str], Saved]) -> None:
    saved = save("sd1")
    (saved.folder / name).write_bytes(b"")
    refused(saved.folder, f"was saved without '{name}'; remove that file")
    with pytest.raises(PatchError, match="was saved without"):
        saved.load()


def test_notes_may_be_added(save: Callable[[str], Saved]) -> None:
    saved = save("sd1")
    (saved.folder / ".cache" / "huggingface").mkdir(parents=True)
    for name in ("README.md", ".gitattributes", ".cache/huggingface/more.json"):
        (saved.folder / name).write_text("{}")
    assert same(picture(load_pipeline(saved.folder), "sd1"), saved.erased)
    assert same(picture(saved.load(), "sd1"), saved.erased)


@pytest.mark.parametrize("strength", [0, -1, 0.5, 1e300])
def test_a_strength_that_was_turned_is_named(strength: float, save: Callable[[str], Saved]) -> None:
    saved = save("sd1")
    edit_record(saved.folder, lambda record: record["patches"][0].update(strength=strength))
    refused(saved.folder, f"expected strength 1.0 of .*, got {float(strength)} in .*erasure.json".replace("+", r"\+"))
    with pytest.raises(PatchError, match="expected strength 1.0"):
        saved.load()


def test_hashes_that_were_cut_out_are_missed(save: Callable[[str], Saved]) -> None:
    saved = save("sd1")
    edit_record(saved.folder, lambda record: record.pop("files"))
    refused(saved.folder, "expected sha256 of all files in .*, got none; it was changed")
    edit_record(saved.folder, lambda record: record.update(files=[]))
    refused(saved.folder, "erasure.json is damaged")


def test_weights_beside_a_record_are_checked(build: Callable[[str], Any], tmp_path: Path) -> None:
    pipe = build("sd1")
    weight_patch(pipe).apply(pipe)
    saved = ErasedPipeline.save_pretrained(pipe, tmp_path / "erased")
    assert type(load_pipeline(saved)) is diffusers.StableDiffusionPipeline
    build("sd1").unet.save_pretrained(saved / "unet")
    refused(saved, "'unet/diffusion_pytorch_model.safetensors' in .* is not the file that was saved")


def test_what_is_saved_is_what_the_pipeline_carries(build: Callable[[str], Any], tmp_path: Path) -> None:
    pipe = build("sd1")
    weights, hook = weight_patch(pipe), hook_patch(pipe)

    def refused(*patches: Patch) -> str:
        with pytest.raises(PatchError) as caught:
            ErasedPipeline.save_pretrained(pipe, tmp_path / "erased", patches)
        assert not list(tmp_path.glob("*erased*"))
        return str(caught.value)

    assert "got one that does not" in refused(weights)
    in_turn(pipe, weights, hook)
    assert "name all of its patches, or none" in refused(weights)
    assert "name all of its patches, or none" in refused(hook)
    original = pipe.unet.state_dict()
    pipe.unet.load_state_dict(build("sd1").unet.state_dict())
    assert "loaded anew" in refused()
    assert "loaded anew" in refused(weights, hook)
    pipe.unet = build("sd1").unet
    assert "got one that does not" in refused(weights, hook)
    assert original is not None


def test_hooks_that_were_taken_off_are_missed(build: Callable[[str], Any], tmp_path: Path) -> None:
    pipe = build("sd1")
    patch = hook_patch(pipe)
    patch.apply(pipe)
    pipe.unet._forward_pre_hooks.clear()
    with pytest.raises(PatchError, match="not in all its parts"):
        ErasedPipeline.save_pretrained(pipe, tmp_path / "erased", [patch])


def test_a_folder_appears_whole_or_not_at_all(
    build: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = build("sd1")
    patch = hook_patch(pipe)
    patch.apply(pipe)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    (tmp_path / "mine").mkdir()
    monkeypatch.setattr("erasers.files.tensors.write", fail)
    with pytest.raises(OSError, match="disk full"):
        ErasedPipeline.save_pretrained(pipe, tmp_path / "mine" / "erased", [patch])
    assert list((tmp_path / "mine").iterdir()) == []


def test_the_command_saves_and_draws_with_hooks(
    build: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pipe = build("sd1")
    pipe.save_pretrained("base")
    hook_patch(pipe).save("star.safetensors")
    assert cli.run(["apply", "star.safetensors", "--model", "base", "--save", "erased"]) == 0
    assert (tmp_path / "erased" / "erasure" / "patches.d" / "0.safetensors").is_file()
    draw_it = ["generate", PROMPT, "--n", "1", "--steps", "2"]
    assert cli.run([*draw_it, "--model", "erased", "--out", "erased.png"]) == 0
    assert cli.run([*draw_it, "--model", "base", "--out", "plain.png"]) == 0
    assert cli.run([*draw_it, "--model", "base", "--patch", "star.safetensors", "--out", "both.png"]) == 0
    pictures = [numpy.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("erased", "plain")]
    assert (pictures[0] != pictures[1]).any()
    assert cli.run(["apply", "star.safetensors", "--model", "erased", "--save", "twice"]) == 2
    assert "carries" in capsys.readouterr().err


def test_a_patch_that_was_forced_on_loads_again(build: Callable[[str], Any], tmp_path: Path) -> None:
    pipe = build("sd1")
    patch = hook_patch(pipe)
    bare = Patch(patch.tensors, {**patch.meta, "base": {}})
    erased = picture(bare.apply(pipe, force=True), "sd1")
    saved = ErasedPipeline.save_pretrained(pipe, tmp_path / "erased")
    assert same(picture(load_pipeline(saved), "sd1"), erased)


def test_hooks_of_a_foreign_class_are_refused(build: Callable[[str], Any], tmp_path: Path) -> None:
    pipe = build("sd1")
    hook_patch(pipe).apply(pipe)
    pipe.__class__ = type("Mine", (type(pipe),), {})
    with pytest.raises(ValueError, match="a pipeline class of diffusers to save with hooks, got Mine"):
        ErasedPipeline.save_pretrained(pipe, tmp_path / "erased")
