"""Where text enters each family of diffusers models: the only place that knows families.

A *port* is a linear map through which text enters the denoiser. Another family is another row of `_FAMILIES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Port:
    """One linear map that reads text: `name` is `<component>.<module path>`, `module` is the live layer."""

    name: str
    module: nn.Linear

    @property
    def parameter(self) -> str:
        """Name of the weight, `<component>.<module path>.weight`."""
        return f"{self.name}.weight"


@dataclass(frozen=True)
class TextEncoder:
    """One text encoder that feeds the ports.

    Args:
        tokenizer: Makes the token ids.
        model: Turns ids into states.
        states: `last` is the final state after the last LayerNorm; `penultimate` is the state before the last layer.
    """

    tokenizer: Any
    model: Any
    states: Literal["last", "penultimate"]


@dataclass(frozen=True)
class _Family:
    component: str
    denoiser: str
    pattern: re.Pattern[str]
    pipelines: str


_FAMILIES = (
    # attn1 reads text instead of the picture in blocks built with `only_cross_attention`.
    _Family(
        "unet",
        "UNet2DConditionModel",
        re.compile(r"(^|\.)attn[12]\.to_[kv]$"),
        "Stable Diffusion 1.x, 2.x and SDXL",
    ),
)


def text_ports(pipe: Any) -> list[Port]:
    """The linear maps through which text enters the denoiser, in module order.

    Raises:
        TypeError: An unsupported pipeline; the message lists the supported ones.
        ValueError: A supported pipeline in a state that cannot be edited (fused, quantised, wrapped, offloaded).
    """
    family, denoiser = _find_family(pipe)
    if getattr(denoiser, "encoder_hid_proj", None) is not None:
        raise TypeError(
            f"expected text to reach the {family.denoiser} unchanged, got a projection (encoder_hid_proj) in between; "
            f"unload IP-Adapter weights, or use one of: {_supported()}"
        )
    ports = [Port(f"{family.component}.{path}", layer) for path, layer in _text_layers(denoiser, family)]
    if not ports:
        raise TypeError(f"expected cross-attention in {type(pipe).__name__}.{family.component}, got none")
    for port in ports:
        check_editable(port.name, port.module)
    return ports


def text_encoders(pipe: Any) -> list[TextEncoder]:
    """The text encoders whose states, side by side, are what the ports read.

    Raises:
        TypeError: An unsupported pipeline.
        ValueError: The pipeline was loaded without its text encoder or tokenizer.
    """
    _find_family(pipe)
    two = hasattr(pipe, "text_encoder_2")
    states: Literal["last", "penultimate"] = "penultimate" if two else "last"
    names = [("tokenizer", "text_encoder")] + ([("tokenizer_2", "text_encoder_2")] if two else [])
    found = []
    for tokenizer_name, encoder_name in names:
        tokenizer, encoder = getattr(pipe, tokenizer_name, None), getattr(pipe, encoder_name, None)
        if (tokenizer is None) != (encoder is None):
            missing = tokenizer_name if tokenizer is None else encoder_name
            raise ValueError(f"expected {type(pipe).__name__} with a {missing}, got None; load the pipeline with it")
        if encoder is not None:
            found.append(TextEncoder(tokenizer, encoder, states))
    if not found:
        raise ValueError(f"expected {type(pipe).__name__} with a text encoder, got None; load the pipeline with it")
    return found


def find_parameter(pipe: Any, name: str, *, linear: bool) -> nn.Parameter:
    """The parameter `<component>.<module path>.<parameter>` of a pipeline, when it can be edited.

    Args:
        pipe: A diffusers pipeline.
        name: Full name of the parameter.
        linear: The parameter has to be the weight of a plain linear layer.

    Raises:
        ValueError: No such parameter, or one that is fused, quantised, wrapped or offloaded.
    """
    component_name, _, path = name.partition(".")
    root = component(pipe, component_name)
    module_path, _, leaf = path.rpartition(".")
    try:
        layer = root.get_submodule(module_path)
    except AttributeError:
        raise ValueError(f"expected {type(pipe).__name__} with {name}, got a {component_name} without it") from None
    if linear:
        _refuse_fused(f"{component_name}.{module_path}", root.get_submodule(module_path.rpartition(".")[0]))
        check_editable(f"{component_name}.{module_path}", layer)
    parameter = getattr(layer, leaf, None)
    if not isinstance(parameter, nn.Parameter):
        raise ValueError(f"expected {type(pipe).__name__} with {name}, got a {component_name} without it")
    check_plain(name, parameter)
    return parameter


def component(pipe: Any, name: str) -> nn.Module:
    """The module `pipe.<name>`, seen through `torch.compile`.

    Raises:
        ValueError: The pipeline has no such module.
    """
    module = getattr(pipe, name, None)
    module = getattr(module, "_orig_mod", module)
    if not isinstance(module, nn.Module):
        raise ValueError(f"expected a pipeline with a {name}, got {type(pipe).__name__} without one")
    return module


def refuse_streaming(name: str, root: nn.Module) -> None:
    """Refuse a component whose weights a diffusers hook swaps in and out (group offloading, layerwise casting).

    Raises:
        ValueError: Names the component, the hook and the way out.
    """
    for module in root.modules():
        # A look into __dict__, for nn.Module is slow to say that it lacks an attribute.
        for hook in getattr(module.__dict__.get("_diffusers_hook"), "hooks", {}):
            if "group_offload" in hook or "layerwise_casting" in hook:
                raise ValueError(
                    f"{name} is under diffusers' {hook} hook, which keeps its own copy of the weights; "
                    "edit the pipeline first and switch that on afterwards"
                )


def check_editable(name: str, layer: nn.Module) -> None:
    """Refuse a layer whose weight is not a plain dense tensor in memory.

    Raises:
        ValueError: Names the layer, the reason and the way out.
    """
    if hasattr(layer, "base_layer"):
        raise ValueError(
            f"{name} is wrapped by an adapter (peft); fuse or unload it first: "
            "pipe.fuse_lora(); pipe.unload_lora_weights()"
        )
    weight = getattr(layer, "weight", None)
    if not isinstance(layer, nn.Linear) or not isinstance(weight, torch.Tensor):
        raise ValueError(f"expected {name} as torch.nn.Linear, got {type(layer).__name__}; load the model unquantised")
    check_plain(name, weight)


def check_plain(name: str, weight: torch.Tensor) -> None:
    """Refuse a parameter that is quantised or not in memory.

    Raises:
        ValueError: Names the parameter, the reason and the way out.
    """
    plain = type(weight.data) is torch.Tensor and type(weight) in (torch.Tensor, nn.Parameter)
    if not plain or weight.dtype not in FLOATS:
        raise ValueError(
            f"expected {name} as float16, bfloat16, float32 or float64, got {type(weight).__name__} of {weight.dtype}; "
            "load the model unquantised"
        )
    if weight.is_meta:
        raise ValueError(
            f"{name} is not in memory (offloaded, or on the meta device); load the pipeline without sequential "
            "offloading or call pipe.remove_all_hooks() first, and switch offloading on afterwards"
        )


def _text_layers(denoiser: nn.Module, family: _Family) -> Iterator[tuple[str, Any]]:
    for path, layer in denoiser.named_modules():
        # peft keeps the true layer below the wrapper under this name; the wrapper itself is what gets refused.
        if not family.pattern.search(path):
            continue
        attention = denoiser.get_submodule(path.rpartition(".")[0])
        if not getattr(attention, "is_cross_attention", False):
            continue
        _refuse_fused(f"{family.component}.{path}", attention)
        yield path, layer


def _refuse_fused(name: str, attention: nn.Module) -> None:
    # The flag `fused_projections` stays set after unfusing; the processor is what tells.
    if type(getattr(attention, "processor", None)).__name__.startswith("Fused"):
        raise ValueError(f"{name} is fused with its neighbours; call pipe.unfuse_qkv_projections() first")


def _find_family(pipe: Any) -> tuple[_Family, nn.Module]:
    for family in _FAMILIES:
        denoiser = getattr(pipe, family.component, None)
        denoiser = getattr(denoiser, "_orig_mod", denoiser)
        names = {cls.__name__ for cls in type(denoiser).__mro__}
        if isinstance(denoiser, nn.Module) and family.denoiser in names:
            if not hasattr(pipe, "text_encoder") and not hasattr(pipe, "text_encoder_2"):
                break
            refuse_streaming(family.component, denoiser)
            return family, denoiser
    raise TypeError(f"expected a pipeline of a supported family ({_supported()}), got {type(pipe).__name__}")


def _supported() -> str:
    return "; ".join(f"{family.pipelines}: {family.denoiser}" for family in _FAMILIES)
