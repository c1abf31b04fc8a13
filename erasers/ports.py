"""The ports of a pipeline: the linear maps through which text enters its denoiser, found by the table of families."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from erasers.families import FAMILIES, Family, UnsupportedPipeline, supported
from erasers.inputs import refuse_unfit

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Kind: TypeAlias = Literal["text", "pooled", "joint"]
KINDS: tuple[Kind, ...] = ("text", "pooled", "joint")

# Parts of a pipeline that read text beside the ports, and what they read.
_OTHER_READERS = {
    "controlnet": "the prompt also reaches",
    "prior": "the prompt also reaches",
    "unet.position_net": "phrases for boxes (GLIGEN) reach",
}


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
class Group:
    """Ports that read the same states.

    Args:
        name: Unique in the pipeline.
        kind: `text`: each token of the prompt, unmixed; `pooled`: one vector a prompt, in the first columns of the
            input; `joint`: tokens after blocks have mixed them with each other and with the picture.
        ports: In module order.
        through: What the text states pass on their way to the ports, token by token; for `joint` ports an
            approximation that leaves out what blocks and time steps do.
        padding: States `[m, d]` that stand in the place of missing tokens whatever the prompt, as the ports read them.
    """

    name: str
    kind: Kind
    ports: tuple[Port, ...]
    through: tuple[nn.Module, ...] = ()
    padding: torch.Tensor | None = None

    def read(self, states: torch.Tensor) -> torch.Tensor:
        """What the ports see of text states `[n, d]`: `[n, width]`, on the CPU."""
        return read_through(self.through, states)


@torch.no_grad()
def read_through(modules: Sequence[nn.Module], states: torch.Tensor) -> torch.Tensor:
    """States `[n, d]` after modules that act on each row alone; on the CPU."""
    for module in modules:
        first = next(module.parameters(), states)
        states = module(states.to(first.device, first.dtype))
    return states.detach().cpu()


def port_groups(pipe: Any, kinds: Sequence[Kind] | Literal["auto"] = "auto") -> list[Group]:
    """The ports of a pipeline by what they read, in module order.

    Args:
        pipe: A diffusers pipeline.
        kinds: Which ports; "auto" takes `text`, and `pooled` where there is no cross-attention.

    Raises:
        UnsupportedPipeline: The message lists the supported ones.
        ValueError: A supported pipeline in a state that cannot be edited (fused, quantised, wrapped, offloaded), or one
            without such ports.
    """
    family, denoisers = find_family(pipe)
    published: tuple[Kind, ...] = ("text",) if family.kind == "cross" else ("text", "pooled")
    groups = []
    for component_name, denoiser in denoisers:
        suffix = "" if component_name == family.components[0] else f"-{component_name}"
        for kind in published if kinds == "auto" else kinds:
            found = list(_groups(family, component_name, denoiser, kind, suffix))
            if not found and kinds != "auto":
                raise ValueError(f"expected ports among those of {family.title}, got {kind!r}, which it does not have")
            groups += found
    if not groups:
        raise UnsupportedPipeline(f"expected ports for text in {type(pipe).__name__}.{family.components[0]}, got none")
    for group in groups:
        for port in group.ports:
            check_editable(port.name, port.module)
    return groups


def text_ports(pipe: Any) -> list[Port]:
    """The linear maps that read each token of the prompt unmixed, in module order; raises as `port_groups` does."""
    return [port for group in port_groups(pipe, ("text",)) for port in group.ports]


def find_family(pipe: Any) -> tuple[Family, list[tuple[str, nn.Module]]]:
    """The family of a pipeline, and its denoisers by the name of the component.

    Raises:
        UnsupportedPipeline: The message lists the supported ones, or names the way out.
        ValueError: A denoiser whose weights diffusers swaps in and out.
    """
    refuse_unfit(pipe)
    refuse_wrapped(pipe)
    for family in FAMILIES:
        parts = [(name, getattr(pipe, name, None)) for name in family.components]
        live = [(name, getattr(part, "_orig_mod", part)) for name, part in parts]
        found = [(name, part) for name, part in live if isinstance(part, nn.Module) and _is_a(part, family.denoiser)]
        if not found or not any(hasattr(pipe, name) for source in family.sources for name in source.encoders):
            continue
        for name, part in found:
            refuse_streaming(name, part)
            if getattr(part, "encoder_hid_proj", None) is not None:
                raise UnsupportedPipeline(
                    f"expected text to reach the {family.denoiser} unchanged, got a projection (encoder_hid_proj) in "
                    f"between; unload IP-Adapter weights, or use one of: {supported()}"
                )
        return family, found
    raise UnsupportedPipeline(f"expected a pipeline of a supported family ({supported()}), got {type(pipe).__name__}")


def refuse_wrapped(pipe: Any) -> None:
    """Refuse a denoiser or text encoder inside of another module: peft's, one for several devices, the user's own.

    Raises:
        UnsupportedPipeline: Names the component, what is around it, and the way out.
    """
    names = [name for family in FAMILIES for name in family.components]
    names += [name for family in FAMILIES for source in family.sources for name in source.encoders]
    for name in dict.fromkeys(names):
        part = getattr(pipe, name, None)
        part = getattr(part, "_orig_mod", part)
        path = _path_of_the_model(part) if isinstance(part, nn.Module) else ""
        if path:
            way = "merge_and_unload()" if hasattr(part, "merge_and_unload") else path
            raise UnsupportedPipeline(
                f"expected a plain model as pipe.{name}, got a {type(part).__name__} around it; take it off first: "
                f"pipe.{name} = pipe.{name}.{way}"
            )


def _path_of_the_model(part: nn.Module) -> str:
    """Where in a wrapper the model is: a denoiser of the table, or all that it holds; "" in what is no wrapper."""
    if hasattr(part, "merge_and_unload") or list(part._modules) == ["module"]:
        return "module"
    denoisers = [family.denoiser for family in FAMILIES]
    paths = (path for path, module in part.named_modules() if any(_is_a(module, name) for name in denoisers))
    return next(paths, "")


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
        raise ValueError(f"expected a pipeline with a {name}, got {type(pipe).__name__} without one")
    return module


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    """A registered module below `root`, seen through `torch.compile`.

    `get_submodule` follows every attribute, and so finds one parameter under several names.
    """
    found: nn.Module | None = root
    for step in path.split(".") if path else ():
        found = None if found is None else found._modules.get(step)
        found = getattr(found, "_orig_mod", found)
    return found


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


def warn_of_other_readers(pipe: Any) -> None:
    """Warn of what reads text beside the ports and is not edited, such as a ControlNet."""
    for name, reads in _OTHER_READERS.items():
        part = pipe
        for step in name.split("."):
            part = getattr(part, step, None)
        if part is not None:
            warnings.warn(
                f"{reads} pipe.{name}, which has layers for text of its own; they are not edited, and "
                "what is erased may still come through them",
                UserWarning,
                stacklevel=4,
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


def _groups(family: Family, component_name: str, denoiser: nn.Module, kind: Kind, suffix: str) -> Iterator[Group]:
    pattern, through = _pattern(family, kind)
    layers: dict[tuple[str, ...], list[Port]] = {}
    for path, layer in denoiser.named_modules():
        # peft keeps the true layer below the wrapper under this name; the wrapper itself is what gets refused.
        match = pattern.search(path) if pattern else None
        attention = denoiser.get_submodule(path.rpartition(".")[0])
        if not match or not getattr(attention, "is_cross_attention", True) and family.components == ("unet",):
            continue
        refuse_fused(f"{component_name}.{path}", attention)
        way = tuple(module.format(**match.groupdict()) for module in through)
        layers.setdefault(way, []).append(Port(f"{component_name}.{path}", layer))
    for index, (way, ports) in enumerate(layers.items()):
        for path in (*way, *(path for source in family.sources for path in source.through)):
            for leaf, parameter in denoiser.get_submodule(path).named_parameters():
                check_plain(f"{component_name}.{path}.{leaf}", parameter)
        modules = tuple(denoiser.get_submodule(module) for module in way)
        if kind == "joint":
            # What every block does first to its half of the text; its scale and shift depend on the time step.
            modules += (nn.LayerNorm(ports[0].module.in_features, eps=1e-6, elementwise_affine=False),)
        name = kind + suffix + (f"-{index}" if len(layers) > 1 else "")
        yield Group(name, kind, tuple(ports), modules, _padding(family, denoiser, modules) if kind == "text" else None)


def _pattern(family: Family, kind: Kind) -> tuple[re.Pattern[str] | None, tuple[str, ...]]:
    """The pattern of the ports of that kind, and the modules before them."""
    if kind == "pooled":
        return (re.compile(family.pooled.port), family.pooled.through) if family.pooled else (None, ())
    if kind == "joint":
        return family.joint, (*family.through, family.text.pattern.strip("^$"))
    return family.text, family.through


def _padding(family: Family, denoiser: nn.Module, through: tuple[nn.Module, ...]) -> torch.Tensor | None:
    if not family.padding:
        return None
    if family.padding != "zero":
        return denoiser.get_parameter(family.padding).detach().cpu()
    layers = [module for part in through for module in part.modules() if isinstance(module, nn.Linear)]
    if not layers:
        return None  # a linear port maps a state of zero to the same, edited or not
    return read_through(through, torch.zeros(1, layers[0].in_features))


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


def _is_a(part: nn.Module, name: str) -> bool:
    """Whether a module is of that class, or of a subclass from outside of diffusers, whose own subclasses differ."""
    classes = type(part).__mro__
    own = next((cls for cls in classes if cls.__module__.startswith("diffusers.")), classes[0])
    return own.__name__ == name
