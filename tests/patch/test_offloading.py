"""Weights that are offloaded, quantised, compiled or cached: a patch works, or is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from support.families.all import FAMILIES
from support.families.base import draw
from support.families.patches import hand_patch, layers
from support.tiny import same, weights
from torch.utils._pytree import tree_map

from erasers import Concept, Patch, PatchError, get_eraser
from erasers.models.ports import port_groups, text_ports

WORDS = ("red", "blue", "van", "gogh", "moon", "ring")
STAR = Concept("star", anchor="circle", preserve=["moon"])
# So many preserved prompts are cached on disk.
MANY = Concept("star", anchor="circle", preserve=[f"{a} {b}" for a in WORDS for b in WORDS])
CPU = torch.device("cpu")


def fit(pipe: Any, concept: Concept = STAR) -> Patch:
    """A patch that moves the prompt a long way."""
    return get_eraser("uce", rows="all", preserve_rows="all", ridge=1e-4).fit(pipe, concept)


def picture(pipe: Any, family: str = "sd1", **options: Any) -> torch.Tensor:
    return draw(pipe, "a picture of star", FAMILIES[family].options, **options)


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return (left - right).abs().max().item()


@pytest.fixture
def patch(pipe: Any) -> Patch:
    return fit(pipe)


@pytest.fixture
def plain(pipe: Any) -> torch.Tensor:
    return picture(pipe)


@pytest.fixture
def erased(pipe: Any, patch: Patch, plain: torch.Tensor) -> torch.Tensor:
    with patch.applied(pipe):
        drawn = picture(pipe)
    assert distance(drawn, plain) > 1e-2
    return drawn


# Offloading


def offload_models(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def offload_layers(pipe: Any, _: Path) -> None:
    """What `enable_sequential_cpu_offload` does; it itself takes no CPU for an accelerator."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            accelerate.cpu_offload(part, CPU, offload_buffers=len(part._parameters) > 0)


def offload_middle(pipe: Any, folder: Path) -> None:
    """What loading with a `device_map` does when one block of the denoiser does not fit."""
    places = {name: "cpu" for name, _ in pipe.unet.named_children()} | {"mid_block": "disk"}
    accelerate.dispatch_model(pipe.unet, places, main_device="cpu", offload_dir=folder, force_hooks=True)


def offload_groups(pipe: Any) -> None:
    pipe.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


def offload_blocks(pipe: Any) -> None:
    pipe.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="block_level", num_blocks_per_group=1)


def cast_layers(pipe: Any) -> None:
    pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)


def test_offloaded_models_are_edited(pipe, patch, plain, erased):
    offload_models(pipe)
    assert fit(pipe).digest == patch.digest
    patch.apply(pipe)
    assert torch.equal(picture(pipe), erased)
    assert torch.equal(picture(pipe), erased)  # each picture offloads anew
    patch.remove(pipe)
    assert torch.equal(picture(pipe), plain)
    pipe.remove_all_hooks()
    patch.apply(pipe)
    offload_models(pipe)
    assert torch.equal(picture(pipe), erased)
    patch.remove(pipe)
    assert torch.equal(picture(pipe), plain)


@pytest.mark.parametrize("offload", [offload_layers, offload_middle])
def test_offloaded_layers_are_refused_until_they_are_back(pipe, patch, plain, erased, tmp_path, offload):
    before = weights(pipe)
    offload(pipe, tmp_path / "first")
    for call in (lambda: fit(pipe), lambda: patch.apply(pipe)):
        with pytest.raises(ValueError, match=r"not in memory.*call pipe\.remove_all_hooks\(\)"):
            call()
    assert torch.equal(picture(pipe), plain)
    pipe.remove_all_hooks()
    assert fit(pipe).digest == patch.digest
    patch.apply(pipe)
    offload(pipe, tmp_path / "second")  # the first holds the unedited weights
    assert torch.equal(picture(pipe), erased)
    with pytest.raises(PatchError, match="not in memory"):
        patch.remove(pipe)
    assert torch.equal(picture(pipe), erased)
    pipe.remove_all_hooks()
    patch.remove(pipe)
    assert same(weights(pipe), before)


@pytest.mark.parametrize("offload", [offload_groups, offload_blocks, cast_layers])
def test_swapped_weights_are_refused_and_patched_ones_are_swapped(pipes, pipe, patch, plain, erased, offload):
    other = pipes("sd1")
    offload(pipe)
    swapped = picture(pipe)
    for call in (lambda: fit(pipe), lambda: patch.apply(pipe)):
        with pytest.raises(ValueError, match=r"hook, which keeps its own copy.*switch that on afterwards"):
            call()
    assert torch.equal(picture(pipe), swapped)
    patch.apply(other)
    offload(other)
    together = picture(other)
    assert distance(together, erased) < (0.5 * distance(erased, plain) if offload is cast_layers else 1e-6)
    with pytest.raises(PatchError, match="keeps its own copy"):
        patch.remove(other)
    assert torch.equal(picture(other), together)


@pytest.mark.parametrize("concept", [STAR, MANY], ids=["few", "many"])
def test_offloaded_text_encoders_are_read(pipes, pipe, concept):
    offload = (
        lambda encoder: accelerate.cpu_offload(encoder, CPU, offload_buffers=True),
        lambda encoder: diffusers.hooks.apply_group_offloading(
            encoder, onload_device=CPU, offload_device=CPU, offload_type="leaf_level"
        ),
    )
    expected = fit(pipe, concept)
    for step in offload:
        other = pipes("sd1")
        step(other.text_encoder)
        assert same(dict(fit(other, concept).tensors), dict(expected.tensors))


# Quantised weights, by stand-ins for the classes of bitsandbytes and torchao


class Int8Params(torch.nn.Parameter):
    """int8 values with a scale for each row."""

    def __new__(cls, data: torch.Tensor, scale: torch.Tensor) -> Any:
        made = torch.Tensor._make_subclass(cls, data, False)
        made.SCB = scale
        return made


class Linear8bitLt(torch.nn.Linear):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(states, self.weight.data * self.weight.SCB[:, None], self.bias)


class Quantised(torch.Tensor):
    """A float tensor to everyone, int8 inside."""

    @staticmethod
    def __new__(cls, values: torch.Tensor, scale: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.float32)

    def __init__(self, values: torch.Tensor, scale: torch.Tensor) -> None:
        self.values, self.scale = values, scale

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].values, args[0].scale)
        if func in (torch.ops.aten.linear.default, torch.ops.aten.t.default, torch.ops.aten.mm.default):
            args = tree_map(lambda part: part.values * part.scale if isinstance(part, cls) else part, args)
            return func(*args, **(kwargs or {}))
        raise NotImplementedError(f"{func} of a quantised tensor")


def rounded(layer: torch.nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    scale = layer.weight.data.abs().amax(dim=1, keepdim=True) / 127
    return (layer.weight.data / scale).round().to(torch.int8), scale


def like_bitsandbytes(layer: torch.nn.Linear) -> torch.nn.Linear:
    values, scale = rounded(layer)
    new = Linear8bitLt(layer.in_features, layer.out_features, bias=layer.bias is not None)
    new.bias, new.weight = layer.bias, Int8Params(values, scale[:, 0])
    return new


def like_torchao(layer: torch.nn.Linear) -> torch.nn.Linear:
    layer.weight = torch.nn.Parameter(Quantised(*rounded(layer)), requires_grad=False)
    return layer


def in_float8(layer: torch.nn.Linear) -> torch.nn.Linear:
    layer.weight = torch.nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    return layer


def with_weight_norm(layer: torch.nn.Linear) -> torch.nn.Linear:
    """Not quantised, but its weight is made anew from two others for each call."""
    return torch.nn.utils.parametrizations.weight_norm(layer)


Quantise = Callable[[torch.nn.Linear], torch.nn.Linear]


def replace(root: torch.nn.Module, suffix: str, quantise: Quantise) -> int:
    """Quantise the linear layers whose names end so."""
    names = [name for name, layer in root.named_modules() if name.endswith(suffix)]
    for name in names:
        parent = root.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], quantise(root.get_submodule(name)))
    return len(names)


@pytest.mark.parametrize("where", ["attn2.to_k", "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"])
@pytest.mark.parametrize("quantise", [like_bitsandbytes, like_torchao, in_float8, with_weight_norm])
def test_quantised_ports_are_refused(pipe, patch, quantise, where):
    assert replace(pipe.unet, where, quantise)
    before = {port: port.weight for port in pipe.unet.modules() if isinstance(port, torch.nn.Linear)}
    for call in (lambda: port_groups(pipe), lambda: fit(pipe), lambda: patch.apply(pipe)):
        with pytest.raises(ValueError, match=r"expected unet\..*attn2.*load the model unquantised"):
            call()
    if quantise is not with_weight_norm:
        assert all(port.weight is weight for port, weight in before.items())


@pytest.mark.parametrize("quantise", [like_bitsandbytes, like_torchao])
def test_other_quantised_layers_are_no_hindrance(pipe, patch, quantise):
    assert replace(pipe.unet, "attn2.to_q", quantise)
    assert fit(pipe).digest == patch.digest
    plain = picture(pipe)
    with patch.applied(pipe):
        assert distance(picture(pipe), plain) > 1e-2
    assert torch.equal(picture(pipe), plain)


@pytest.mark.parametrize("concept", [STAR, MANY], ids=["few", "many"])
@pytest.mark.parametrize("quantise", [like_bitsandbytes, like_torchao])
def test_quantised_text_encoders_are_read(pipe, quantise, concept):
    exact = fit(pipe, concept)
    for suffix in ("k_proj", "fc1"):
        assert replace(pipe.text_encoder, suffix, quantise)
    plain, patch = picture(pipe), fit(pipe, concept)
    (name,) = exact.tensors
    assert 0 < distance(patch.tensors[name], exact.tensors[name]) < 0.1 * distance(exact.tensors[name], torch.eye(32))
    with patch.applied(pipe):
        assert distance(picture(pipe), plain) > 1e-2


@pytest.mark.parametrize("quantise", [like_bitsandbytes, like_torchao, in_float8])
def test_quantised_layers_before_the_ports_are_refused(tmp_path, quantise):
    for family, suffix in (("pixart", "caption_projection.linear_1"), ("hunyuandit", "text_embedder.linear_2")):
        pipe = FAMILIES[family].build(tmp_path / family)
        assert replace(pipe.transformer, suffix, quantise) == 1
        with pytest.raises(ValueError, match=rf"transformer\.{suffix}.*load the model unquantised"):
            port_groups(pipe)


# Compiled code and caches of diffusers


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile imports what torch itself deprecates
def test_compiled_denoisers_see_the_patch(pipe, patch, plain, erased):
    pipe.unet.mid_block.compile(backend="aot_eager")
    assert distance(picture(pipe), plain) < 1e-4
    patch.apply(pipe)
    assert distance(picture(pipe), erased) < 1e-4
    patch.remove(pipe)
    assert distance(picture(pipe), plain) < 1e-4


def interrupted(pipe: Any, family: str) -> None:
    """A picture that is given up after its first step."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        picture(pipe, family, callback_on_step_end=stop)


@pytest.mark.parametrize("family", ["flux", "qwenimage", "wan", "cogview4"])
def test_first_block_cache_keeps_nothing_of_what_is_erased(tmp_path, family):
    """With this threshold, every step but the first reuses what the step before it kept."""
    pipe = FAMILIES[family].build(tmp_path)
    patch = fit(pipe)
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=1e9))
    plain = picture(pipe, family)
    with patch.applied(pipe):
        erased = picture(pipe, family)
    assert distance(plain, erased) > 1e-2
    interrupted(pipe, family)
    patch.apply(pipe)
    assert torch.equal(picture(pipe, family), erased)
    interrupted(pipe, family)
    patch.remove(pipe)
    assert torch.equal(picture(pipe, family), plain)
    pipe.transformer.disable_cache()
    patch.apply(pipe)
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=1e9))
    assert torch.equal(picture(pipe, family), erased)


class Nucleus:
    """Stands for a pipeline: Nucleus, the one model that diffusers caches keys and values of text for."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.transformer = diffusers.NucleusMoEImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
            moe_enabled=False,
        )
        self.transformer.requires_grad_(False).eval()
        for layer in self.transformer.modules():
            if isinstance(layer, torch.nn.Linear):
                torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        self.text = torch.randn(1, 5, 32)

    def step(self) -> torch.Tensor:
        torch.manual_seed(1)
        with self.transformer.cache_context("cond"):
            return self.transformer(
                hidden_states=torch.randn(1, 4, 4),
                img_shapes=(1, 2, 2),
                encoder_hidden_states=self.text,
                timestep=torch.ones(1),
                return_dict=False,
            )[0]


def test_text_cache_keeps_nothing_of_what_is_erased():
    pipe = Nucleus()
    with pytest.raises(TypeError, match="supported family"):
        text_ports(pipe)
    patch = hand_patch(pipe, layers(pipe, "transformer", r"add_[kv]_proj$"), scale=1.0)
    plain = pipe.step()
    with patch.applied(pipe):
        erased = pipe.step()
    assert distance(plain, erased) > 1e-2
    pipe.transformer.enable_cache(diffusers.TextKVCacheConfig())
    assert distance(pipe.step(), plain) < 1e-5
    patch.apply(pipe)
    assert distance(pipe.step(), erased) < 1e-5
    patch.remove(pipe)
    assert distance(pipe.step(), plain) < 1e-5
