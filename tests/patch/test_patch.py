from __future__ import annotations

import copy
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.tiny import draw, same, weights

from erasers import Concept, Patch, PatchError, get_eraser
from erasers.files.hashing import tensor_hash
from erasers.files.tensors import FORMAT, KEY
from erasers.models.ports import port_groups, text_ports
from erasers.patch.build import transform_patch

D = 32


def random_patch(pipe: Any, seed: int = 0, rank: int = 2) -> Patch:
    (group,) = port_groups(pipe)
    generator = torch.Generator().manual_seed(seed)
    a, b = (0.3 * torch.randn(rank, D, generator=generator) for _ in range(2))
    hashes = {port.parameter: tensor_hash(port.module.weight) for port in group.ports}
    return transform_patch("uce", get_eraser("uce").config(), [Concept(f"concept {seed}")], [(group, a, b.T)], hashes)


def changed(patch: Patch, tensors: dict[str, torch.Tensor] | None = None, **meta: Any) -> Patch:
    return Patch(dict(patch.tensors) if tensors is None else tensors, {**patch.meta, **meta})


def test_stack_in_any_order(pipe):
    patches = [random_patch(pipe, 0), random_patch(pipe, 1, rank=20), random_patch(pipe, 2)]
    assert "transform/text/T" in patches[1].tensors
    before = weights(pipe)
    with patches[0].applied(pipe), patches[2].applied(pipe, strength=0.5):
        expected = weights(pipe)
    for patch, strength in zip(patches, (1, 1, 0.5), strict=True):
        patch.apply(pipe, strength=strength)
    patches[1].remove(pipe)
    assert same(expected, weights(pipe))
    patches[0].remove(pipe)
    patches[2].remove(pipe)
    assert same(before, weights(pipe))


def test_strength_scales_the_edit(pipe):
    patch, name = random_patch(pipe), "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    old = weights(pipe)[name]
    shift = []
    for strength in (1.0, 0.5, -2.0):
        with patch.applied(pipe, strength=strength):
            shift.append((weights(pipe)[name] - old) / strength)
    torch.testing.assert_close(shift[0], shift[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shift[0], shift[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shift[0], old @ patch.tensors["transform/text/B"] @ patch.tensors["transform/text/A"])


def test_lowrank_and_dense_parts(pipe):
    layer, bias = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "unet.conv_in.bias"
    before = weights(pipe)
    width = before[f"{layer}.weight"].shape[0]
    tensors = {
        f"lowrank/{layer}/A": torch.ones(1, width),
        f"lowrank/{layer}/B": torch.ones(width, 1),
        f"dense/{bias}": torch.full_like(before[bias], 7),
    }
    base = {name: tensor_hash(before[name]) for name in (f"{layer}.weight", bias)}
    patch = changed(random_patch(pipe), tensors, groups={}, base=base)
    with patch.applied(pipe):
        after = weights(pipe)
        torch.testing.assert_close(after[f"{layer}.weight"], before[f"{layer}.weight"] + 1)
        assert (after[bias] == 7).all()
    with patch.applied(pipe, strength=0.5):
        torch.testing.assert_close(weights(pipe)[bias], (before[bias] + 7) / 2)
    assert same(before, weights(pipe))
    with pytest.raises(PatchError, match="dense"):
        patch.to_lora(pipe, ".")


def test_shared_modules_and_deep_copies(pipe):
    from diffusers import StableDiffusionImg2ImgPipeline

    patch, before = random_patch(pipe), weights(pipe)
    patch.apply(pipe)
    shared = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    twin = copy.deepcopy(pipe.unet)
    with pytest.raises(PatchError, match="already carries"):
        patch.apply(shared)
    patch.remove(shared)
    assert same(before, weights(pipe))
    pipe.unet = twin
    assert not same(before, weights(pipe))
    patch.remove(pipe)
    assert same(before, weights(pipe))


def test_dtype_changed_after_apply(pipe):
    patch, before = random_patch(pipe), weights(pipe)
    patch.apply(pipe)
    pipe.unet.half()
    other = random_patch(pipe, 5)
    with other.applied(pipe, force=True):
        pass
    patch.remove(pipe)
    after = weights(pipe)
    assert all(torch.equal(after[name], before[name].half()) for name in patch.parameters)


def test_half_precision_of_the_same_checkpoint_is_accepted(pipe):
    patch = random_patch(pipe)
    pipe.unet.half()
    patch.apply(pipe)
    patch.remove(pipe)
    pipe.unet.bfloat16()
    patch.apply(pipe)
    patch.remove(pipe)
    pipe.unet.float()
    patch.apply(pipe)


def test_patch_fitted_on_a_patched_pipeline(pipe):
    first = random_patch(pipe)
    before = weights(pipe)
    first.apply(pipe)
    second = random_patch(pipe, 1)
    second.apply(pipe)
    second.remove(pipe)
    first.remove(pipe)
    assert same(before, weights(pipe))
    with pytest.raises(PatchError, match="other weights"):
        second.apply(pipe)


def test_refuses_when_something_else_changed_the_weights(pipe):
    patch = random_patch(pipe)
    patch.apply(pipe)
    layer = text_ports(pipe)[3]
    layer.module.weight.data += 0.01  # what fusing a LoRA does; the version counter does not see it
    for call in (patch.remove, random_patch(pipe, 1).apply):
        with pytest.raises(PatchError, match="was changed after a patch was applied"):
            call(pipe)


def test_memory_of_fingerprints_sees_fused_weights(pipe):
    patch = get_eraser("uce", rows="last").fit(pipe, "star")
    text_ports(pipe)[0].module.weight.data += 0.01
    with pytest.raises(PatchError, match="other weights"):
        patch.apply(pipe)


def test_all_or_nothing(pipe, monkeypatch):
    from erasers.patch import edits

    patch, before = random_patch(pipe), weights(pipe)
    calls = []

    def fail(self: Any, weight: torch.Tensor, strength: float) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("no memory")
        return weight + 1

    monkeypatch.setattr(edits.Edit, "apply", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        patch.apply(pipe)
    assert same(before, weights(pipe))
    with pytest.raises(PatchError, match="does not carry"):
        patch.remove(pipe)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), "1", None, True])
def test_bad_strength(pipe, strength):
    with pytest.raises(PatchError, match="finite number"):
        random_patch(pipe).apply(pipe, strength=strength)


def test_overflow_in_half_precision_is_refused(pipe):
    pipe.unet.half()
    patch, before = random_patch(pipe), weights(pipe)
    with pytest.raises(PatchError, match="does not fit torch.float16"):
        patch.apply(pipe, strength=1e6)
    assert same(before, weights(pipe))


def test_other_models_are_refused(pipes):
    pipe = pipes("sd1")
    patch = random_patch(pipe)
    with pytest.raises(PatchError, match="another model"):
        patch.apply(pipes("sd2"))
    pipe.unet = None
    with pytest.raises(PatchError, match="with a unet"):
        patch.apply(pipe)
    bare = pipes("sd1")
    del bare.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    with pytest.raises(PatchError, match="without it"):
        patch.apply(bare)


def test_saved_pipeline_loads_without_this_library(pipe, tmp_path):
    from diffusers import StableDiffusionPipeline

    patch = random_patch(pipe)
    with patch.applied(pipe):
        expected = draw(pipe)
        pipe.save_pretrained(tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(draw(loaded), expected)


def test_quantised_and_missing_weights_are_refused(pipe):
    patch, layer = random_patch(pipe), text_ports(pipe)[0].module
    layer.weight = torch.nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(PatchError, match="load the model unquantised"):
        patch.apply(pipe)
    pipe.unet.to("meta")
    layer.weight = torch.nn.Parameter(torch.empty(8, D, device="meta"))
    with pytest.raises(PatchError, match="not in memory"):
        patch.apply(pipe)


def test_fused_projections_are_refused_until_unfused(pipe):
    patch = random_patch(pipe)
    pipe.fuse_qkv_projections()
    with pytest.raises(PatchError, match="unfuse_qkv_projections"):
        patch.apply(pipe)
    pipe.unfuse_qkv_projections()
    patch.apply(pipe)


# Files


def test_save_and_load(pipe, tmp_path):
    patch = random_patch(pipe)
    path = tmp_path / "x.safetensors"
    patch.save(path)
    loaded = Patch.load(str(path))
    assert loaded.digest == patch.digest
    assert dict(loaded.meta) == dict(patch.meta)
    assert loaded.nbytes == 2 * 2 * D * 4
    assert copy.deepcopy(loaded) is loaded
    assert list(tmp_path.iterdir()) == [path]
    assert "concept 0" in repr(loaded)
    assert set(loaded.meta["base"]) == set(loaded.parameters)


def test_patch_of_double_weights_is_double(pipe):
    pipe.unet.double()
    assert random_patch(pipe).tensors["transform/text/A"].dtype == torch.float64


def test_save_refuses_bad_paths(pipe, tmp_path):
    patch = random_patch(pipe)
    with pytest.raises(FileNotFoundError, match="create it first"):
        patch.save(tmp_path / "none" / "x.safetensors")
    with pytest.raises(PatchError, match="folder"):
        patch.save(tmp_path)


def test_load_refuses_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        Patch.load(tmp_path / "none.safetensors")
    with pytest.raises(PatchError, match="folder"):
        Patch.load(tmp_path)
    path = tmp_path / "x.safetensors"
    huge = struct.pack("<Q", 2**62) + b"{}"
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}).encode()
    for content in (b"", b"abc", b"hello world, this is no tensor file", huge, struct.pack("<Q", len(header)) + header):
        path.write_bytes(content)
        with pytest.raises(PatchError, match=r"x\.safetensors"):
            Patch.load(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(PatchError, match="not a patch"):
        Patch.load(path)
    save_file({"a": torch.zeros(2)}, path, metadata={KEY: "[1]"})
    with pytest.raises(PatchError, match="damaged"):
        Patch.load(path)


def test_load_refuses_every_truncation(pipe, tmp_path):
    path = tmp_path / "x.safetensors"
    random_patch(pipe).save(path)
    whole = path.read_bytes()
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(PatchError, match="truncated"):
            Patch.load(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(PatchError, match="expected"):
        Patch.load(path)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"format": FORMAT + 1}, "upgrade erasers"),
        ({"format": None}, "format"),
        ({"method": 3}, "method"),
        ({"base": []}, "base"),
        ({"concepts": ["x"]}, "concept"),
        ({"groups": {}}, "group 'text'"),
        ({"groups": {"text": ["unet.a", "unet.a"]}}, "one edit"),
        ({"config": {"x": float("nan")}}, "JSON"),
    ],
)
def test_bad_metadata(pipe, meta, message):
    with pytest.raises(PatchError, match=message):
        changed(random_patch(pipe), **meta)


A, B = "transform/text/A", "transform/text/B"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "got none"),
        ({"other/x": torch.zeros(2, 2)}, "other/x"),
        (
            {"hook/unet.mid_block/sae/W": torch.zeros(2, 2)},
            "kind prompt_transform or .*, got 'sae' on unet.mid_block; upgrade erasers",
        ),
        ({A: torch.zeros(2, D)}, r"A\+B or T"),
        ({A: torch.zeros(2, D), B: torch.zeros(D, 3)}, "fit each other"),
        ({A: torch.zeros(2, D), B: torch.zeros(D + 1, 2)}, "fit each other"),
        ({A: torch.zeros(0, D), B: torch.zeros(D, 0)}, "matrices"),
        ({"transform/text/T": torch.zeros(2, 3)}, "fit each other"),
        ({"transform/text/T": torch.zeros(2)}, "matrices"),
        ({A: torch.full((2, D), float("nan")), B: torch.zeros(D, 2)}, "NaN"),
        ({A: torch.full((2, D), float("inf")), B: torch.zeros(D, 2)}, "NaN or infinity"),
        ({A: torch.zeros(2, D, dtype=torch.int32), B: torch.zeros(D, 2)}, "int32"),
        ({"dense/unet.x/A": torch.zeros(2, 2)}, "dense/unet.x"),
    ],
)
def test_bad_tensors(pipe, tensors, message):
    with pytest.raises(PatchError, match=message):
        changed(random_patch(pipe), tensors)


def test_size_of_one_row_for_stable_diffusion_1(tmp_path: Path):
    """One row for a model with the names and widths of Stable Diffusion 1.4: at most 20 KB."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
    names = [f"unet.{name}" for name, _ in unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]
    assert len(names) == 32
    assert sum(unet.get_submodule(name.removeprefix("unet.")).weight.numel() for name in names) == 19_169_280
    tensors = {A: torch.randn(1, 768), B: torch.randn(768, 1)}
    meta = {
        "format": FORMAT,
        "library": "0.1.0",
        "method": "rece",
        "config": get_eraser("rece-official").config(),
        "concepts": [{"name": "van gogh", "aliases": ["vincent van gogh"], "anchor": "art", "kind": "style"}],
        "groups": {"text": names},
        "base": {f"{name}.weight": "0" * 64 for name in names},
        "base_dtype": "float32",
    }
    Patch(tensors, meta).save(tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").stat().st_size <= 20_000
