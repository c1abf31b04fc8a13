"""What users do to pipelines that carry hooks: copies, LoRAs, offloading, fused layers, caches, compilation."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from support.families.all import FAMILIES
from support.families.base import draw as draw_family
from support.families.patches import hand_patch, layers, stock_load, transform_patch
from support.selection import rows
from support.tiny import draw, make_unet
from test_hooks import LAYER, D, difference, family_patch, on_layer, on_unet

from erasers import Patch, PatchError
from erasers.models.ports import text_ports
from erasers.patch.stack import running


@pytest.fixture(params=["unet", "layer"])
def patch(request: pytest.FixtureRequest, pipe: Any) -> Patch:
    """A hook on the denoiser, or on a layer inside of it."""
    return on_unet(pipe) if request.param == "unet" else on_layer(pipe)


@pytest.fixture
def pictures(patch: Patch, pipe: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Without and with the patch."""
    plain = draw(pipe)
    with patch.applied(pipe):
        erased = draw(pipe)
    assert difference(plain, erased) > 1e-3
    return plain, erased


def apply_beside(patch: Patch, pipe: Any, switch_on: Callable[[], Any], order: str) -> None:
    """Apply the patch before or after something of the user's is switched on."""
    steps: list[Callable[[], Any]] = [lambda: patch.apply(pipe), switch_on]
    for step in steps if order == "patch first" else reversed(steps):
        step()


# Copies and shared modules


def test_a_copy_has_hooks_of_its_own(pipe, patch, pictures):
    plain, erased = pictures
    patch.apply(pipe)
    first, second = pipe.unet, copy.deepcopy(pipe.unet)
    for parameter in first.parameters():
        parameter.data.zero_()
    pipe.unet = second
    assert torch.equal(draw(pipe), erased)
    patch.remove(pipe)
    assert torch.equal(draw(pipe), plain)
    pipe.unet = first
    assert patch.is_applied(pipe)
    assert len(running(pipe)) == 1


def test_pipelines_that_share_a_module_share_its_hooks(pipe, patch, pictures):
    from diffusers import StableDiffusionImg2ImgPipeline

    plain, erased = pictures
    shared = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    patch.apply(shared)
    assert torch.equal(draw(pipe), erased)
    patch.remove(pipe)
    assert running(shared) == []
    assert torch.equal(draw(pipe), plain)


def test_a_denoiser_of_half_precision(pipe, patch):
    pipe.unet.half()
    pipe.text_encoder.half()
    text, sample = torch.randn(1, 16, D).half(), torch.randn(1, 4, 8, 8).half()
    with torch.no_grad():
        plain = pipe.unet(sample, 1, text).sample
        with patch.applied(pipe):
            erased = pipe.unet(sample, 1, text).sample
    assert erased.dtype == torch.float16
    assert difference(plain, erased) > 1e-3


# LoRAs of the user's own


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize("order", ["patch first", "lora first"])
def test_hooks_stay_under_loras(pipe, patch, pictures, tmp_path, order):
    plain, erased = pictures
    style = hand_patch(pipe, layers(pipe, "unet", r"attn2\.to_[qk]$"))
    style.to_lora(pipe, tmp_path)
    apply_beside(patch, pipe, lambda: stock_load(pipe, tmp_path), order)
    both = draw(pipe)
    assert difference(both, erased) > 1e-3
    pipe.disable_lora()
    assert torch.equal(draw(pipe), erased)
    pipe.enable_lora()
    assert torch.equal(draw(pipe), both)
    patch.remove(pipe)
    assert difference(draw(pipe), both) > 1e-3
    patch.apply(pipe)
    assert torch.equal(draw(pipe), both)
    pipe.unload_lora_weights()
    assert torch.equal(draw(pipe), erased)
    patch.remove(pipe)
    assert torch.equal(draw(pipe), plain)


# Offloading


def offload_models(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def offload_groups(pipe: Any) -> None:
    devices = dict.fromkeys(("onload_device", "offload_device"), torch.device("cpu"))
    pipe.unet.enable_group_offload(**devices, offload_type="leaf_level")


@pytest.mark.parametrize("offload", [offload_models, offload_groups])
@pytest.mark.parametrize("order", ["patch first", "offload first"])
def test_hooks_stay_when_models_are_offloaded(pipe, patch, pictures, order, offload):
    plain, erased = pictures
    apply_beside(patch, pipe, partial(offload, pipe), order)
    # After every call diffusers takes its offloading of models off and puts it on again.
    for _ in range(2):
        assert torch.equal(draw(pipe), erased)
    patch.remove(pipe)
    for _ in range(2):
        assert torch.equal(draw(pipe), plain)


def test_hooks_outlive_those_that_offload_models(pipe, patch, pictures):
    _, erased = pictures
    offload_models(pipe)
    draw(pipe)
    assert hasattr(pipe.unet, "_hf_hook")
    patch.apply(pipe)
    pipe.remove_all_hooks()
    assert torch.equal(draw(pipe), erased)


def test_hooks_run_where_weights_are_not_in_memory(pipe, patch, pictures):
    from accelerate import cpu_offload

    plain, erased = pictures
    patch.apply(pipe)
    cpu_offload(pipe.unet, torch.device("cpu"))
    assert next(pipe.unet.parameters()).is_meta
    assert torch.equal(draw(pipe), erased)
    patch.remove(pipe)
    assert torch.equal(draw(pipe), plain)
    with pytest.raises(PatchError, match="not in memory.*or pass force=True"):
        patch.apply(pipe)
    with patch.applied(pipe, force=True):
        assert torch.equal(draw(pipe), erased)


@pytest.mark.parametrize("order", ["patch first", "casting first"])
def test_hooks_stay_under_layerwise_casting(pipe, patch, pictures, order):
    plain, erased = pictures
    dtypes = {"storage_dtype": torch.float16, "compute_dtype": torch.float32}
    apply_beside(patch, pipe, partial(pipe.unet.enable_layerwise_casting, **dtypes), order)
    assert difference(draw(pipe), erased) < 0.1 * difference(plain, erased)
    patch.remove(pipe)
    assert difference(draw(pipe), plain) < 0.1 * difference(plain, erased)


class Quantised(torch.nn.Module):
    """A linear layer of whole numbers, as quantisation makes them."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach()
        self.scale = float(weight.abs().max()) / 127
        self.weight = torch.nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight.to(x.dtype) * self.scale).T


def test_hooks_erase_a_quantised_model_that_no_edit_fits(pipe):
    baked = transform_patch(pipe, 2)
    hooks = baked.to_hooks(pipe)
    with baked.applied(pipe):
        expected = draw(pipe)
    for port in text_ports(pipe):
        path, _, leaf = port.name.removeprefix("unet.").rpartition(".")
        setattr(pipe.unet.get_submodule(path), leaf, Quantised(port.module))
    plain = draw(pipe)
    for patch in (baked, hooks):
        with pytest.raises(PatchError, match="load the model unquantised"):
            patch.apply(pipe)
    with pytest.raises(PatchError, match="load the model unquantised"):
        baked.apply(pipe, force=True)
    with hooks.applied(pipe, force=True):
        assert difference(draw(pipe), expected) < 0.1 * difference(plain, expected)


# Layers that are not called


def test_layers_fused_before_or_after_are_refused(pipe):
    at_layer, at_unet, plain = on_layer(pipe), on_unet(pipe), draw(pipe)
    at_layer.apply(pipe)
    pipe.fuse_qkv_projections()
    with pytest.raises(PatchError, match=rf"would not run: {LAYER} is fused.*unfuse_qkv_projections"):
        draw(pipe)
    at_layer.remove(pipe)
    assert difference(draw(pipe), plain) <= 2e-5
    with pytest.raises(PatchError, match="unfuse_qkv_projections"):
        at_layer.apply(pipe)
    assert running(pipe) == []
    with at_unet.applied(pipe):
        fused = draw(pipe)
    pipe.unfuse_qkv_projections()
    with at_unet.applied(pipe):
        assert difference(draw(pipe), fused) <= 2e-5
    with at_layer.applied(pipe):
        assert difference(draw(pipe), plain) > 1e-3


# Caches of diffusers


@pytest.mark.parametrize("order", ["patch first", "cache first"])
def test_the_cache_that_knows_prompts_by_their_address_is_refused(pipe, order):
    from diffusers.hooks import HookRegistry, TextKVCacheConfig, apply_text_kv_cache

    patch = on_unet(pipe)
    if order == "patch first":
        patch.apply(pipe)
    apply_text_kv_cache(pipe.unet, TextKVCacheConfig())
    with pytest.raises(PatchError, match="text_kv_cache.*disable_cache"):
        patch.apply(pipe) if order == "cache first" else draw(pipe)
    HookRegistry.check_if_exists_or_initialize(pipe.unet).remove_hook("text_kv_cache_transformer")
    if order == "cache first":
        patch.apply(pipe)
    draw(pipe)


@pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
@pytest.mark.parametrize("kind", ["weights", "hooks"])
def test_no_cache_keeps_states_of_before(tmp_path: Path, kind: str):
    from diffusers.hooks import FirstBlockCacheConfig

    pipe = FAMILIES["flux"].build(tmp_path)
    options = FAMILIES["flux"].options
    patch = family_patch(pipe)
    patch = patch.to_hooks(pipe) if kind == "hooks" else patch
    picture = partial(draw_family, pipe, "a picture of star", options)
    # Every block but the first is left out from the second step on.
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    plain = picture()
    with patch.applied(pipe):
        erased = picture()
    assert difference(plain, erased) > 1e-3 * float(plain.abs().max())
    assert torch.equal(picture(), plain)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    for change, expected in ((patch.apply, erased), (patch.remove, plain)):
        with pytest.raises(KeyboardInterrupt):
            pipe("red circle", **options, callback_on_step_end=stop)
        change(pipe)
        assert torch.equal(picture(), expected)


# Compilation


@pytest.fixture
def small(pipe: Any) -> Iterator[Callable[[], Any]]:
    """Builds pipelines with a denoiser that compiles in a second; all of the same weights."""
    from diffusers import StableDiffusionPipeline

    def build() -> Any:
        unet = make_unet(D, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
        built = StableDiffusionPipeline(**{**pipe.components, "unet": unet}, requires_safety_checker=False)
        built.set_progress_bar_config(disable=True)
        return built

    torch.compiler.reset()
    before = torch._dynamo.config.skip_nnmodule_hook_guards
    torch._dynamo.config.skip_nnmodule_hook_guards = True
    yield build
    torch._dynamo.config.skip_nnmodule_hook_guards = before
    torch.compiler.reset()


def whole(pipe: Any, backend: str = "eager") -> None:
    pipe.unet = torch.compile(pipe.unet, backend=backend)


def in_place(pipe: Any) -> None:
    pipe.unet.compile(backend="eager")


def blocks(pipe: Any) -> None:
    pipe.unet.compile_repeated_blocks(backend="eager")


def forward(pipe: Any) -> None:
    pipe.unet.forward = torch.compile(pipe.unet.forward, backend="eager")


AOT = partial(whole, backend="aot_eager")
close = partial(torch.testing.assert_close, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("compiler", "compiled_with"),
    rows(
        [
            (AOT, "nothing"),
            (in_place, "nothing"),
            (blocks, "nothing"),
            (forward, "nothing"),
            (whole, "hooks"),
            (blocks, "hooks"),
        ],
        default=lambda compiler, _: compiler is blocks,
    ),
)
def test_compiled_models_show_what_is_applied_and_removed(small, compiler, compiled_with):
    pipe = small()
    at_unet, at_layer, edit = on_unet(pipe, 1), on_layer(pipe, 2), transform_patch(pipe, 2)
    hooks = Patch({**at_unet.tensors, **at_layer.tensors}, at_unet.meta)
    pictures = []
    for patches in ((), (edit,), (hooks,), (at_layer,)):
        for patch in patches:
            patch.apply(pipe)
        pictures.append(draw(pipe))
        for patch in patches:
            patch.remove(pipe)
    plain, edited, erased, partly = pictures
    assert min(difference(a, b) for a, b in itertools.combinations(pictures, 2)) > 1e-3
    torch._dynamo.config.skip_nnmodule_hook_guards = True  # as in a process that has seen no hook yet
    if compiled_with == "hooks":
        hooks.apply(pipe)
        compiler(pipe)
        close(draw(pipe), erased)
        hooks.remove(pipe)
        close(draw(pipe), plain)
    else:
        compiler(pipe)
        close(draw(pipe), plain)
        with edit.applied(pipe):
            close(draw(pipe), edited)
        close(draw(pipe), plain)
    at_layer.apply(pipe)
    close(draw(pipe), partly)


@pytest.mark.full
@pytest.mark.parametrize("compiler", [whole, blocks])
def test_code_compiled_for_one_model_does_not_run_for_another_with_hooks(small, compiler):
    bare, hooked = small(), small()
    patch, plain = on_layer(hooked), draw(bare)
    patch.apply(hooked)
    erased = draw(hooked)
    assert difference(plain, erased) > 1e-3
    compiler(bare)
    close(draw(bare), plain)
    compiler(hooked)
    close(draw(hooked), erased)
    close(draw(bare), plain)


@pytest.mark.full
def test_a_model_that_another_pipeline_has_compiled(small):
    from diffusers import StableDiffusionPipeline

    pipe = small()
    patch, plain = on_layer(pipe), draw(pipe)
    with patch.applied(pipe):
        erased = draw(pipe)
    torch._dynamo.config.skip_nnmodule_hook_guards = True
    shared = StableDiffusionPipeline.from_pipe(pipe)
    shared.set_progress_bar_config(disable=True)
    whole(shared)
    close(draw(shared), plain)
    patch.apply(pipe)
    close(draw(shared), erased)


def test_weights_that_compilation_may_have_frozen(pipe, monkeypatch):
    import torch._inductor.config

    resets = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    patch = transform_patch(pipe, 2)
    with patch.applied(pipe):
        assert resets == []
    with torch._inductor.config.patch(freezing=True):
        patch.apply(pipe)
        assert resets == [1]
        patch.remove(pipe)
    assert resets == [1, 1]
