"""Where in a picture a denoiser looks for a concept: maps of its cross-attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.table import denoisers_of
from erasers.diffusion.denoiser import predict

_PART = 4
"""Maps are read where they have a quarter of the side of the latents, 16 of 64 as in the paper."""


def cross_attention(pipe: Any) -> dict[str, nn.Module]:
    """The cross-attention modules of the denoisers, by full name."""
    return {
        f"{name}.{path}": module
        for name, denoiser in denoisers_of(pipe).items()
        for path, module in denoiser.named_modules()
        if path.rpartition(".")[2] == "attn2" and hasattr(module, "to_k")
    }


@torch.no_grad()
def attention_masks(
    pipe: Any,
    noisy: torch.Tensor,
    times: torch.Tensor,
    condition: Condition,
    tokens: Sequence[torch.Tensor],
    threshold: float,
) -> torch.Tensor:
    """1 where the concept's tokens are looked at, `[n, 1, h, w]`.

    Args:
        pipe: A pipeline whose denoiser has cross-attention; what it has in place of its weights counts.
        noisy: x_t `[n, c, h, w]`.
        times: t `[n]`.
        condition: Of n prompts.
        tokens: Positions of the concept's tokens in each.
        threshold: Of maps from 0 to 1.
    """
    modules: dict[str, Any] = cross_attention(pipe)
    with asked(modules) as seen:
        predict(pipe, noisy, times, condition)
    height, width = noisy.shape[-2:]
    maps: dict[tuple[int, int], list[torch.Tensor]] = {}
    for name, parts in seen.items():
        map_ = looks(parts["to_q"].float(), parts["to_k"].float(), modules[name].heads, tokens)
        size = side_of(map_.shape[1], height, width)
        maps.setdefault(size, []).append(map_.view(-1, 1, *size))
    size = min(maps, key=lambda size: abs(size[0] - height / _PART))
    return (normalised(torch.stack(maps[size]).mean(dim=0)) >= threshold).to(noisy.dtype)


@contextmanager
def asked(modules: Mapping[str, Any]) -> Iterator[dict[str, dict[str, torch.Tensor]]]:
    """Inside, what cross-attention last asked and was told is kept: `to_q` and `to_k` of each module by its name."""
    seen: dict[str, dict[str, torch.Tensor]] = {}
    with ExitStack() as stack:
        for name, module in modules.items():
            for layer in ("to_q", "to_k"):
                keep = partial(_keep, seen.setdefault(name, {}), layer)
                stack.callback(getattr(module, layer).register_forward_hook(keep).remove)
        yield seen


def _keep(seen: dict[str, torch.Tensor], layer: str, module: nn.Module, args: Any, output: torch.Tensor) -> None:
    seen[layer] = output


def looks(queries: torch.Tensor, keys: torch.Tensor, heads: int, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
    """How much each place `[n, places]` looks at the tokens: mean over heads and tokens of softmax(q k' / sqrt(d)).

    Args:
        queries: `[n, places, heads d]`.
        keys: `[n, T, heads d]`.
        heads: Of the attention.
        tokens: Positions in each of the n prompts.
    """
    q, k = (value.unflatten(-1, (heads, -1)).transpose(1, 2) for value in (queries, keys))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=1)
    rows = [row[:, own.to(row.device)].mean(dim=-1) for row, own in zip(weights, tokens, strict=True)]
    return torch.stack(rows)


def normalised(maps: torch.Tensor) -> torch.Tensor:
    """Each map `[n, 1, h, w]` stretched to the range from 0 to 1; zeros where it is the same everywhere."""
    low, high = maps.amin(dim=(1, 2, 3), keepdim=True), maps.amax(dim=(1, 2, 3), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-12)


def side_of(places: int, height: int, width: int) -> tuple[int, int]:
    """(h, w) of a map of so many places, of the shape of the latents."""
    rows = max(1, round((places * height / width) ** 0.5))
    return rows, places // rows


def outside(masks: torch.Tensor, places: int) -> torch.Tensor:
    """1 where a layer of so many places is out of the masks `[n, 1, h, w]`: `[n, places, 1]`."""
    size = side_of(places, *masks.shape[-2:])
    return 1 - functional.interpolate(masks, size, mode="nearest").flatten(2).transpose(1, 2)
