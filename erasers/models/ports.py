"""The ports of a pipeline: the linear maps through which text enters its denoiser, found by the table of families."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from erasers.models.components import check_editable, check_plain, refuse_fused, refuse_streaming
from erasers.models.families import FAMILIES, Family, UnsupportedPipeline, supported
from erasers.models.inputs import refuse_unfit

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
            own = list(groups_of(family, component_name, denoiser, kind, suffix))
            if not own and kinds != "auto":
                raise ValueError(f"expected ports among those of {family.title}, got {kind!r}, which it does not have")
            groups += own
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
        values = [(name, getattr(pipe, name, None)) for name in family.components]
        live = [(name, getattr(value, "_orig_mod", value)) for name, value in values]
        modules = [(name, value) for name, value in live if isinstance(value, nn.Module)]
        denoisers = [(name, module) for name, module in modules if _is_a(module, family.denoiser)]
        if not denoisers or not any(hasattr(pipe, name) for source in family.sources for name in source.encoders):
            continue
        for name, denoiser in denoisers:
            refuse_streaming(name, denoiser)
            if getattr(denoiser, "encoder_hid_proj", None) is not None:
                raise UnsupportedPipeline(
                    f"expected text to reach the {family.denoiser} unchanged, got a projection (encoder_hid_proj) in "
                    f"between; unload IP-Adapter weights, or use one of: {supported()}"
                )
        return family, denoisers
    raise UnsupportedPipeline(f"expected a pipeline of a supported family ({supported()}), got {type(pipe).__name__}")


def refuse_wrapped(pipe: Any) -> None:
    """Refuse a denoiser or text encoder inside of another module: peft's, one for several devices, the user's own.

    Raises:
        UnsupportedPipeline: Names the component, what is around it, and the way out.
    """
    names = [name for family in FAMILIES for name in family.components]
    names += [name for family in FAMILIES for source in family.sources for name in source.encoders]
    for name in dict.fromkeys(names):
        module = getattr(pipe, name, None)
        module = getattr(module, "_orig_mod", module)
        path = _path_of_the_model(module) if isinstance(module, nn.Module) else ""
        if path:
            way = "merge_and_unload()" if hasattr(module, "merge_and_unload") else path
            raise UnsupportedPipeline(
                f"expected a plain model as pipe.{name}, got a {type(module).__name__} around it; take it off first: "
                f"pipe.{name} = pipe.{name}.{way}"
            )


def _path_of_the_model(wrapper: nn.Module) -> str:
    """Where in a wrapper the model is: a denoiser of the table, or all that it holds; "" in what is no wrapper."""
    if hasattr(wrapper, "merge_and_unload") or list(wrapper._modules) == ["module"]:
        return "module"
    denoisers = [family.denoiser for family in FAMILIES]
    paths = (path for path, module in wrapper.named_modules() if any(_is_a(module, name) for name in denoisers))
    return next(paths, "")


def warn_of_other_readers(pipe: Any) -> None:
    """Warn of what reads text beside the ports and is not edited, such as a ControlNet."""
    for name, reads in _OTHER_READERS.items():
        reader = pipe
        for step in name.split("."):
            reader = getattr(reader, step, None)
        if reader is not None:
            warnings.warn(
                f"{reads} pipe.{name}, which has layers for text of its own; they are not edited, and "
                "what is erased may still come through them",
                UserWarning,
                stacklevel=5,
            )


def groups_of(
    family: Family, component_name: str, denoiser: nn.Module, kind: Kind, suffix: str = ""
) -> Iterator[Group]:
    """The ports of one denoiser by what they read, whether or not their weights can be edited.

    Raises:
        ValueError: Attention whose projections are fused, or weights that are wrapped or quantised.
    """
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
    layers = [layer for module in through for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        return None  # a linear port maps a state of zero to the same, edited or not
    return read_through(through, torch.zeros(1, layers[0].in_features))


def _is_a(module: nn.Module, name: str) -> bool:
    """Whether a module is of that class, or of a subclass from outside of diffusers, whose own subclasses differ."""
    classes = type(module).__mro__
    own = next((cls for cls in classes if cls.__module__.startswith("diffusers.")), classes[0])
    return own.__name__ == name
