"""What diffusers users do to pipelines: a patch works through it, or is refused with the reason."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import diffusers
import pytest
import safetensors.torch
import torch
from support.families.all import FAMILIES
from support.families.base import draw
from support.families.patches import adapters, hand_patch, layers, stock_load
from support.selection import only
from support.tiny import weights

from erasers import Concept, ErasedPipeline, Patch, PatchError, get_eraser, load_lora
from erasers.models.ports import find_family

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:text also enters time_extra_emb"),
]

STAR = Concept("star", anchor="circle", preserve=["moon"])
PROMPT = "a picture of star"


def fit(pipe: Any, **options: Any) -> Patch:
    """A patch that moves the prompt a long way."""
    return get_eraser("uce", rows="all", preserve_rows="all", ridge=1e-4, cache=False, **options).fit(pipe, STAR)


def picture(pipe: Any, family: str = "sd1", **options: Any) -> torch.Tensor:
    return draw(pipe, PROMPT, FAMILIES[family].options, **options)


def erased_picture(pipe: Any, patch: Patch, family: str = "sd1") -> torch.Tensor:
    """The picture with the patch, and the check that it differs."""
    plain = picture(pipe, family)
    with patch.applied(pipe):
        erased = picture(pipe, family)
    assert distance(plain, erased) > 1e-2
    return erased


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return (left - right).abs().max().item()


def quiet(call: Any, *args: Any, **options: Any) -> Any:
    """The result of a call of stock diffusers, whatever it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **options)


# Modules that pipelines share


def test_a_patch_shows_in_every_pipeline_that_shares_the_module(pipe):
    patch = fit(pipe)
    plain, erased = picture(pipe), erased_picture(pipe, patch)
    other = diffusers.AutoPipelineForText2Image.from_pipe(pipe)
    assert torch.equal(picture(other), plain)
    patch.apply(pipe)
    assert torch.equal(picture(other), erased)
    with pytest.raises(PatchError, match="already carries"):
        patch.apply(other)
    patch.remove(other)
    assert torch.equal(picture(pipe), plain)


def test_deep_copies_do_not_share(pipe):
    patch = fit(pipe)
    plain, erased = picture(pipe), erased_picture(pipe, patch)
    patch.apply(pipe)
    twin = copy.deepcopy(pipe.unet)
    patch.remove(pipe)
    assert torch.equal(picture(pipe), plain)
    pipe.unet = twin
    assert torch.equal(picture(pipe), erased)
    patch.remove(pipe)
    assert torch.equal(picture(pipe), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_pipeline_in_another_type_stays_erased_and_is_restored(pipe, dtype):
    patch, before = fit(pipe), weights(pipe)
    patch.apply(pipe)
    erased = weights(pipe)
    pipe.to(dtype)
    now = weights(pipe)
    assert all(torch.equal(now[name], erased[name].to(dtype)) for name in patch.parameters)
    patch.remove(pipe)
    now = weights(pipe)
    assert all(torch.equal(now[name], before[name].to(dtype)) for name in patch.parameters)
    assert all(now[name].dtype == dtype for name in patch.parameters)


# LoRA


def test_stock_saving_with_an_adapter_breaks_and_ours_is_refused(pipe, tmp_path):
    patch = fit(pipe)
    plain, erased = picture(pipe), erased_picture(pipe, patch)
    patch.to_lora(pipe, tmp_path / "lora")
    stock_load(pipe, tmp_path / "lora")
    quiet(pipe.save_pretrained, tmp_path / "stock")
    loaded = quiet(diffusers.StableDiffusionPipeline.from_pretrained, tmp_path / "stock")
    broken = picture(loaded)
    assert not distance(broken, erased) < 1e-2
    assert not distance(broken, plain) < 1e-2
    with pytest.raises(ValueError, match="fuse_lora"):
        ErasedPipeline.save_pretrained(pipe, tmp_path / "ours")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    ErasedPipeline.save_pretrained(pipe, tmp_path / "ours")
    assert distance(picture(diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "ours")), erased) < 1e-4


@pytest.mark.parametrize("switch", ["disable", "other", "unload", "delete"])
def test_an_adapter_is_switched_off_and_a_baked_patch_is_not(pipe, tmp_path, switch):
    patch = fit(pipe)
    plain, erased = picture(pipe), erased_picture(pipe, patch)
    none = hand_patch(pipe, layers(pipe, "unet", r"attn1\.to_q$"), scale=0.0)
    for each, name in ((patch, "erasure"), (none, "style")):
        each.to_lora(pipe, tmp_path / name)
    for baked in (False, True):
        names = ["style"] if baked else ["erasure", "style"]
        if baked:
            patch.apply(pipe)
        for name in names:
            quiet(load_lora, pipe, tmp_path / name, adapter_name=name)
        assert distance(picture(pipe), erased) <= 2e-5
        {
            "disable": pipe.disable_lora,
            "other": lambda: pipe.set_adapters(["style"]),
            "unload": pipe.unload_lora_weights,
            "delete": lambda names=names: pipe.delete_adapters(names[0]),
        }[switch]()
        assert distance(picture(pipe), erased if baked else plain) <= 2e-5
        pipe.unload_lora_weights()


def test_kohya_names_load_nothing_on_sd3(tmp_path):
    """Stock diffusers says nothing when it finds nothing; `load_lora` reads the names itself, and refuses others."""
    pipe = FAMILIES["sd3"].build(tmp_path)
    patch = hand_patch(pipe, layers(pipe, "transformer", r"add_[kv]_proj$"))
    path = patch.to_lora(pipe, tmp_path / "kohya", form="kohya")
    stock_load(pipe, tmp_path / "kohya")
    assert not adapters(pipe)
    tensors = safetensors.torch.load_file(path)
    strange = {name.replace("joint_blocks", "transformer_blocks"): tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(strange, path, metadata={"format": "pt"})
    stock_load(pipe, tmp_path / "kohya")
    assert not adapters(pipe)
    with pytest.raises(PatchError, match="another model"):
        load_lora(pipe, tmp_path / "kohya")


@pytest.mark.parametrize(("family", "part"), [("sd1", "unet"), ("sdxl", "unet"), ("sd3", "transformer")])
def test_alpha_keys_are_refused_by_diffusers_and_never_written(tmp_path, family, part):
    pipe = FAMILIES[family].build(tmp_path / "pipe")
    patch = hand_patch(pipe, layers(pipe, part, r"attn2\.to_[kv]$|add_[kv]_proj$"))
    path = patch.to_lora(pipe, tmp_path / "lora")
    tensors = safetensors.torch.load_file(path)
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in tensors)
    alphas = {name.replace("lora_A.weight", "alpha"): torch.tensor(1.0) for name in tensors if "lora_A" in name}
    safetensors.torch.save_file(tensors | alphas, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="Invalid LoRA"):
        stock_load(pipe, path.parent)


# Fused projections: diffusers keeps the separate layers beside the fused one and no longer reads them

TEXT, JOINT = ("sd1", "sdxl", "pixart", "wan", "hunyuandit"), ("sd3", "flux", "flux2", "chroma", "auraflow")


@pytest.mark.filterwarnings("ignore:the (text|pooled) ports are not edited")
@pytest.mark.parametrize("family", only(TEXT + JOINT, "sd1", "pixart", "flux"))
def test_fused_projections(tmp_path, family):
    pipe = FAMILIES[family].build(tmp_path)
    denoiser = find_family(pipe)[1][0][1]
    patch = fit(pipe, ports=("joint" if family in JOINT else "text",))
    plain, erased, before = picture(pipe, family), erased_picture(pipe, patch, family), weights(pipe)
    denoiser.fuse_qkv_projections()
    for call in (lambda: fit(pipe, ports=("joint" if family in JOINT else "text",)), lambda: patch.apply(pipe)):
        with pytest.raises(ValueError, match=r"fused.*call pipe\.(unet|transformer)\.unfuse_qkv_projections"):
            call()
    assert distance(picture(pipe, family), plain) < 1e-4
    denoiser.unfuse_qkv_projections()
    patch.apply(pipe)
    assert torch.equal(picture(pipe, family), erased)
    denoiser.fuse_qkv_projections()
    assert distance(picture(pipe, family), erased) < 1e-4
    with pytest.raises(PatchError, match="fused"):
        patch.remove(pipe)
    assert distance(picture(pipe, family), erased) < 1e-4
    denoiser.unfuse_qkv_projections()
    patch.remove(pipe)
    now = weights(pipe)
    assert all(torch.equal(now[name], value) for name, value in before.items())
    denoiser.fuse_qkv_projections()
    assert distance(picture(pipe, family), plain) < 1e-4


def test_dense_edits_of_fused_projections_are_refused(pipe):
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    value = weights(pipe)[name] + 1
    patch = hand_patch(pipe, [], **{f"dense/{name}": value})
    pipe.fuse_qkv_projections()
    with pytest.raises(PatchError, match="fused"):
        patch.apply(pipe)
    pipe.unfuse_qkv_projections()
    patch.apply(pipe)
    pipe.fuse_qkv_projections()
    with pytest.raises(PatchError, match="fused"):
        patch.remove(pipe)


@pytest.mark.parametrize("family", ["flux", "sd3", "sana", "qwenimage"])
def test_fusing_leaves_other_ports_alone(tmp_path, family):
    """Embedders are never fused, and diffusers fuses nothing in Sana and Qwen-Image."""
    pipe = FAMILIES[family].build(tmp_path)
    patch = fit(pipe)
    erased = erased_picture(pipe, patch, family)
    pipe.transformer.fuse_qkv_projections()
    assert fit(pipe).digest == patch.digest
    patch.apply(pipe)
    assert distance(picture(pipe, family), erased) < 1e-4
