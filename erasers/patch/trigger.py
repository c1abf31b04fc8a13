"""A hook that takes concepts out of the tokens of a prompt that bring them, inside of a text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from erasers.files.tensors import PatchError
from erasers.models.encoder_blocks import blocks_of, is_clip
from erasers.patch.feature_hooks import first_output
from erasers.patch.hooks import Hook, on_device, precise, shape_or_type

_ROWS = 64
# A direction of the space of a prompt that is shorter than this share of the longest is rounding.
_NOTHING = 1e-4


@dataclass(frozen=True, eq=False)
class TriggerProjection(Hook):
    """What a block of a text encoder returns loses the space of a concept in prompts with a trigger: see `projected`.

    Parts: space `[k, d]`, orthonormal; alpha `[1]`; end `[1]`, the id of the token that ends a prompt; first `[1]`,
    the first token that counts; behind `[1]`, 1 where what stands behind a trigger loses the space, too; centre `[d]`
    where states are taken less that.
    """

    kind = "trigger_projection"

    def __post_init__(self) -> None:
        sizes = {part: tuple(tensor.shape) for part, tensor in self.parts.items()}
        space = sizes.get("space", ())
        wanted = {"space": space} | dict.fromkeys(("alpha", "end", "first", "behind"), (1,))
        wanted |= {"centre": space[1:]} if "centre" in sizes else {}
        if sizes != wanted or len(space) != 2 or 0 in space:
            raise PatchError(
                f"expected the parts space [k, d], alpha, end, first and behind [1], and at most centre [d], of "
                f"{self.kind}, got {sizes}"
            )
        if not self.path:
            raise PatchError(f"expected {self.kind} on a block of a text encoder, got one on {self.target}")

    def check(self, module: nn.Module) -> None:
        """See `Hook.check`."""
        width = next((parameter.shape[-1] for parameter in module.parameters() if parameter.ndim == 1), None)
        own = self.parts["space"].shape[1]
        if width not in (None, own):
            raise PatchError(
                f"the patch is for another model: {self.target} returns rows of {width}, the hook needs {own}"
            )

    def install(self, module: nn.Module, strength: float, root: nn.Module) -> list[RemovableHandle]:
        """See `Hook.install`."""
        return TriggerCall(self.target, self.parts, strength, module, root).install()


class TriggerCall:
    """A trigger projection as torch calls it; its tensors follow the states to another device.

    Args:
        target: The block.
        parts: Those of a `TriggerProjection`.
        strength: Scale of what it does.
        module: The live block.
        root: Its text encoder.
        heard: Gets what `ratios` reads of each prompt, which then stays as it is; None: nothing is kept.
    """

    def __init__(
        self,
        target: str,
        parts: Mapping[str, torch.Tensor],
        strength: float,
        module: nn.Module,
        root: nn.Module,
        heard: list[torch.Tensor] | None = None,
    ) -> None:
        self.target, self.parts, self.strength = target, dict(parts), strength
        self.module, self.root, self.heard = module, root, heard
        blocks = [block for _, block in blocks_of(root)]
        self.blocks = blocks[: next(number for number, block in enumerate(blocks) if block is module) + 1]
        self.clip = is_clip(root)
        self.ids: Any = None
        self.mask = torch.empty(0)
        self.first: tuple[Any, tuple[Any, ...], dict[str, Any]] = (None, (), {})

    def install(self) -> list[RemovableHandle]:
        """Make it run."""
        return [
            self.root.register_forward_pre_hook(self.read, with_kwargs=True),
            self.blocks[0].register_forward_pre_hook(self.begin, with_kwargs=True),
            self.module.register_forward_hook(self, prepend=True),
        ]

    def read(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the token ids of the call that begins, and how a token that is masked is embedded."""
        self.ids = args[0] if args else kwargs.get("input_ids")
        if self.clip:
            layers = {path.rpartition(".")[2]: layer for path, layer in root.named_modules()}
            token, position = (layers[name].weight.detach() for name in ("token_embedding", "position_embedding"))
            self.mask = token[0] + position

    def begin(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take what the first block reads."""
        hidden = args[0] if args else kwargs["hidden_states"]
        self.first = hidden, args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.strength == 0:
            return output
        rows, width = first_output(output), self.parts["space"].shape[1]
        if not isinstance(rows, torch.Tensor) or rows.ndim != 3 or rows.shape[-1] != width:
            raise PatchError(f"expected {self.target} to return rows [n, T, {width}], got {shape_or_type(rows)}")
        if not isinstance(self.ids, torch.Tensor):
            raise PatchError(f"expected the text encoder of {self.target} to read input_ids, got none")
        self.parts = on_device(self.parts, rows.device)
        edited = torch.stack([self._edited(number, states) for number, states in enumerate(rows)])
        return edited if rows is output else (edited, *output[1:])

    def _edited(self, number: int, states: torch.Tensor) -> torch.Tensor:
        """One prompt; nothing of the others has a say in it."""
        ids = self.ids[number].to(states.device)
        ends = (ids == int(self.parts["end"])).nonzero()
        first, end = int(self.parts["first"]), int(ends[0]) if len(ends) else len(ids) - 1
        if end <= first:
            return states
        pooled = self._masked(number, first, end) if self.clip else left_out(states[first : end + 1].detach())
        if self.heard is not None:
            self.heard.append(pooled.float().cpu())
            return states
        return projected(states, pooled, first, self.parts, self.strength)

    @torch.no_grad()
    def _masked(self, number: int, first: int, end: int) -> torch.Tensor:
        """The state of the end of a prompt, and that with each of its tokens masked `[1 + tokens, d]`."""
        hidden, args, kwargs = self.first
        count = end - first
        rows = hidden[number].detach().expand(1 + count, *hidden.shape[1:]).clone()
        at = torch.arange(count, device=rows.device)
        rows[at + 1, at + first] = self.mask.to(rows.device, rows.dtype)[at + first]
        ends = []
        for part in rows.split(_ROWS):
            own = {name: _like(value, number, len(part), len(hidden)) for name, value in kwargs.items()}
            others = [_like(value, number, len(part), len(hidden)) for value in args]
            for block in self.blocks:
                # Not the module's call: hooks that record states, as those of transformers, would record these, too.
                part = first_output(block.forward(part, *others, **own))
            ends.append(part[:, end])
        return torch.cat(ends)


def _like(value: Any, number: int, count: int, batch: int) -> Any:
    """What a block was told of one prompt of a batch, so many times."""
    if isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == batch:
        return value[number : number + 1].expand(count, *value.shape[1:])
    return value


def left_out(states: torch.Tensor) -> torch.Tensor:
    """The mean of states `[m, d]`, and that without each of them but the last `[m, d]`."""
    total = states.sum(dim=0)
    return torch.cat([total[None] / len(states), (total - states[:-1]) / (len(states) - 1)])


def ratios(pooled: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """d_i / mean_{j != i} d_j `[m]`: how much farther from the concept a prompt is without token i than without others.

    d_i = |(I - P_C) e_i|, with e at length 1 where it is taken less a centre; among the others is the whole prompt, so
    that there always is one.

    Args:
        pooled: e `[1 + m, d]`: of the whole prompt, then without each token.
        parts: Those of a `TriggerProjection`, in the dtype of the states.
    """
    e = functional.normalize(pooled - parts["centre"], dim=1) if "centre" in parts else pooled
    away = (e - e @ parts["space"].T @ parts["space"]).norm(dim=1)
    others = (away.sum() - away[1:]) / (len(away) - 1)
    return torch.as_tensor(away[1:] / others.clamp(min=1e-12))


def projected(
    states: torch.Tensor, pooled: torch.Tensor, first: int, parts: Mapping[str, torch.Tensor], strength: float
) -> torch.Tensor:
    """States of one prompt in which triggers become (I - P_C) P_I x, and what stands behind them (I - P_C) x.

    A token is a trigger where its ratio is at least 1 + alpha; a prompt without one stays as it is, bit for bit. P_C
    projects on the space of the concept, P_I on that of e_i (arXiv 2410.12761). Linear in s.

    Args:
        states: x `[T, d]`.
        pooled: e, see `ratios`.
        first: Position of the first token that counts.
        parts: Those of a `TriggerProjection`, on the device of the states.
        strength: s.
    """
    x, cast = precise(states, parts)
    e = pooled.to(x.dtype)
    triggers = (ratios(e, cast) >= 1 + cast["alpha"]).nonzero()[:, 0] + first
    if not len(triggers):
        return states
    centre = cast.get("centre", torch.zeros_like(x[0]))
    basis = space_of(e - centre)
    own = x - centre
    places = torch.arange(len(x), device=x.device)
    is_trigger = torch.isin(places, triggers)
    changed = places >= triggers[0] if cast["behind"] > 0 else is_trigger
    left = torch.where(is_trigger[:, None], own @ basis.T @ basis, own)
    left = left - left @ cast["space"].T @ cast["space"]
    return torch.where(changed[:, None], (x + strength * (left - own)).to(states.dtype), states)


def space_of(rows: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows `[r, d]` that span rows `[m, d]`."""
    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    return torch.as_tensor(directions[sizes > _NOTHING * sizes[0].clamp(min=1e-12)])
