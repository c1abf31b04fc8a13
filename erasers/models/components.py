"""The modules and weights of a live pipeline: found by name, and refused where they cannot be edited."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def find_parameter(pipe: Any, name: str, *, linear: bool, edit: bool = True) -> nn.Parameter:
    """The parameter `<component>.<module path>.<parameter>` of a pipeline, when it can be edited.

    Args:
        pipe: A diffusers pipeline.
        name: Full name of the parameter.
        linear: The parameter has to be the weight of a plain linear layer.
        edit: False to find also one that is fused, which can be read.

    Raises:
        ValueError: No such parameter, or one that is fused, quantised, wrapped or offloaded.
    """
    component_name, _, path = name.partition(".")
    root = component(pipe, component_name)
    module_path, _, leaf = path.rpartition(".")
    layer = submodule(root, module_path)
    if edit and layer is not None:
        refuse_fused(f"{component_name}.{module_path}", submodule(root, module_path.rpartition(".")[0]) or root)
    if linear and layer is not None:
        check_editable(f"{component_name}.{module_path}", layer)
    layer = below_adapters(layer)
    parameter = None if layer is None else layer._parameters.get(leaf)
    if not isinstance(parameter, nn.Parameter):
        raise ValueError(
            f"expected {type(pipe).__name__} with {name}, got a {component_name} without it; "
            "is it the model that it was fitted on?"
        )
    check_plain(name, parameter)
    return parameter


def component(pipe: Any, name: str) -> nn.Module:
    """The module `pipe.<name>`, seen through `torch.compile`.

    Raises:
        ValueError: The pipeline has no such module.
    """
    # Names come from files: properties of a pipeline and entries of its configuration are no components.
    module = getattr(pipe, "__dict__", {}).get(name)
    module = getattr(module, "_orig_mod", module)
    if not isinstance(module, nn.Module):
        way = "; a model of transformers goes into erasers.ModelPipeline" if isinstance(pipe, nn.Module) else ""
        raise ValueError(f"expected a pipeline with a {name}, got {type(pipe).__name__} without one{way}")
    return module


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    """A registered module below `root`, seen through `torch.compile`.

    `get_submodule` follows every attribute, and so finds one parameter under several names.
    """
    module: nn.Module | None = root
    for step in path.split(".") if path else ():
        module = None if module is None else module._modules.get(step)
        module = getattr(module, "_orig_mod", module)
    return module


def below_adapters(layer: nn.Module | None) -> nn.Module | None:
    """The layer that was there before adapters (peft) were loaded."""
    while layer is not None and "base_layer" in layer._modules:
        layer = layer._modules["base_layer"]
    return layer


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
    if not isinstance(layer, nn.Linear) or not isinstance(weight, nn.Parameter):
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


def refuse_fused(name: str, attention: nn.Module) -> None:
    """Refuse a layer that the attention it belongs to does not call, having fused it with its neighbours.

    Raises:
        ValueError: Names the layer and the way out.
    """
    # In the older attention class the flag `fused_projections` stays set after unfusing; there the processor tells.
    newer = getattr(attention, "fused_projections", False) and hasattr(attention, "unfuse_projections")
    if newer or type(getattr(attention, "processor", None)).__name__.startswith("Fused"):
        raise ValueError(
            f"{name} is fused with its neighbours; call pipe.{name.partition('.')[0]}.unfuse_qkv_projections() first"
        )


def parameters_of(pipe: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """(full name, parameter) of all components."""
    for component_name, module in pipe.components.items():
        if isinstance(module, nn.Module):
            for name, parameter in module.named_parameters():
                yield f"{component_name}.{name}", parameter
