"""Low-rank updates of weights that a network runs with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from erasers.diffusion.adaptors.table import denoisers_of
from erasers.diffusion.draws import gaussian
from erasers.diffusion.gradients import unmixed
from erasers.models.components import component, find_parameter, submodule

_ATTENTION = re.compile(
    r"\.(attn\d?|attention)\.(to_q|to_k|to_v|to_out|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out|to_qkv_mlp_proj)$"
)

Factors = tuple[nn.Parameter, nn.Parameter]
"""A `[r, d]` and B `[out, r]` of one layer: it adds B A x."""


def fresh_factors(pipe: Any, rank: int, generator: torch.Generator) -> dict[str, Factors]:
    """Factors of every projection of the denoisers' attention, by name, A random and B zero.

    Raises:
        ValueError: Weights that cannot be edited.
    """
    factors = {}
    for path in attention_layers(pipe):
        weight = find_parameter(pipe, f"{path}.weight", linear=True)
        out, width = weight.shape
        down = gaussian(torch.empty(rank, width, device=weight.device), generator) / width**0.5
        factors[path] = nn.Parameter(down), nn.Parameter(torch.zeros(out, rank, device=weight.device))
    return factors


@contextmanager
def added(pipe: Any, factors: Mapping[str, Factors]) -> Iterator[None]:
    """Inside, the layers add what their factors make of their input, with gradients to these."""

    def hook(pair: Factors) -> Any:
        def add(layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            down, up = pair
            with unmixed(down):
                more = args[0].to(down.dtype) @ down.T @ up.T
            return output + more.to(output.dtype)

        return add

    with ExitStack() as stack:
        for name, pair in factors.items():
            owner, _, path = name.partition(".")
            layer = submodule(component(pipe, owner), path)
            if layer is not None:
                stack.callback(layer.register_forward_hook(hook(pair)).remove)
        yield


def attention_layers(pipe: Any) -> dict[str, nn.Module]:
    """Every projection of the denoisers' attention, by full name: those of pictures and of text where both attend."""
    return {
        f"{name}.{path}": layer
        for name, denoiser in denoisers_of(pipe).items()
        for path, layer in denoiser.named_modules()
        if _ATTENTION.search(path) and not isinstance(layer, nn.ModuleList)
    }
