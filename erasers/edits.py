"""How the tensors of a patch change weights, and how the change is undone.

The state of a component (which patches it carries, and the tensors they replaced) lives on the module itself, so that
pipelines that share a module agree on it and a deep copy has its own.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import nn

from erasers.hashing import tensor_hashes
from erasers.patch_file import PatchError
from erasers.ports import FLOATS, component, find_parameter, refuse_streaming

_STATE = "_erasers_state"
# Letters, digits, dots and dashes: nothing that a terminal, a path or a look-alike could make use of.
_TARGET = r"[\w.-]{1,500}"
_NAME = re.compile(rf"(?P<form>transform|lowrank|dense)/(?P<target>{_TARGET})(/(?P<part>[ABT]))?", re.ASCII)
_PORT = re.compile(_TARGET, re.ASCII)
_PARTS: dict[str, tuple[set[str | None], ...]] = {
    "transform": ({"A", "B"}, {"T"}),
    "lowrank": ({"A", "B"},),
    "dense": ({None},),
}

# (fingerprints of each parameter by kind, dtypes) -> None, raising when they do not fit.
Check: TypeAlias = Callable[[Mapping[str, Mapping[str, str]], Mapping[str, torch.dtype]], None]


@dataclass(frozen=True, eq=False)
class Edit:
    """What happens to one weight.

    Args:
        form: `transform`, `lowrank` or `dense`.
        parts: A and B, or T, or (under None) the new value.
    """

    form: str
    parts: Mapping[str | None, torch.Tensor]

    def shape(self) -> tuple[int | None, ...]:
        """Shape that the weight must have; None where any size will do."""
        if self.form == "dense":
            return tuple(self.parts[None].shape)
        if self.form == "lowrank":
            return self.parts["B"].shape[0], self.parts["A"].shape[1]
        return None, (self.parts["T"] if "T" in self.parts else self.parts["A"]).shape[1]

    def apply(self, weight: torch.Tensor, strength: float) -> torch.Tensor:
        """The edited weight, a new tensor of the same dtype on the same device; computed in float32 or float64."""
        if strength == 0:
            return weight.clone()
        old, parts = self._as(weight)
        if self.form == "dense":
            new = parts[None].clone() if strength == 1 else torch.lerp(old, parts[None], strength)
        elif "T" in parts:
            shift = parts["T"] - torch.eye(old.shape[1], dtype=old.dtype, device=old.device)
            new = torch.addmm(old, old, shift, alpha=strength)
        else:
            left = old @ parts["B"] if self.form == "transform" else parts["B"]
            new = torch.addmm(old, left, parts["A"], alpha=strength)
        return new.to(weight.dtype)

    def factors(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(down `[r, d]`, up `[out, r]`) with W_new = W + up down.

        Raises:
            PatchError: A dense edit, which has no exact factors of low rank.
        """
        if self.form == "dense":
            raise PatchError("expected low-rank edits to write as a LoRA, got a dense one; save the patch instead")
        old, parts = self._as(weight)
        if "T" in parts:
            left, right = self._split
            return right, old.double().cpu() @ left
        return parts["A"], old @ parts["B"] if self.form == "transform" else parts["B"]

    @cached_property
    def _split(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors `[d, r]`, `[r, d]` of T - I in float64, r its numerical rank."""
        transform = self.parts["T"]
        left, values, right = torch.linalg.svd(transform.double() - torch.eye(transform.shape[0], dtype=torch.float64))
        keep = max(1, int((values > values.max() * torch.finfo(transform.dtype).eps).sum()))
        return left[:, :keep] * values[:keep], right[:keep]

    def _as(self, weight: torch.Tensor) -> tuple[torch.Tensor, dict[str | None, torch.Tensor]]:
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        parts = {name: part.to(weight.device, dtype) for name, part in self.parts.items()}
        return weight.detach().to(dtype), parts


@dataclass(frozen=True)
class Entry:
    """One patch as it is applied: its digest, its strength, its edits by parameter name, and the patch itself."""

    digest: str
    strength: float
    edits: Mapping[str, Edit]
    patch: Any
    order: int = field(default_factory=itertools.count().__next__)


@dataclass
class _State:
    """Patches on one component, in order, and the tensors they replaced, by parameter name."""

    stack: list[Entry] = field(default_factory=list)
    originals: dict[str, torch.Tensor] = field(default_factory=dict)


def parse(tensors: Mapping[str, torch.Tensor], groups: Mapping[str, Any]) -> dict[str, Edit]:
    """The edits of a patch by parameter name.

    Raises:
        PatchError: Unknown names, missing parts, wrong shapes or dtypes, values that are not finite.
    """
    found: dict[tuple[str, str], dict[str | None, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if not match:
            hint = "; this version has no runtime hooks, upgrade erasers" if name.startswith("hook/") else ""
            raise PatchError(f"expected tensors named transform/, lowrank/ or dense/, got {name!r:.80}{hint}")
        if tensor.dtype not in FLOATS:
            raise PatchError(f"expected {name!r} as floating point, got {tensor.dtype}")
        if not torch.isfinite(tensor).all():
            raise PatchError(f"expected finite values in {name!r}, got NaN or infinity")
        found.setdefault((match["form"], match["target"]), {})[match["part"]] = tensor
    edits: dict[str, Edit] = {}
    for (form, target), parts in found.items():
        _check_parts(f"{form}/{target}", form, parts)
        edit = Edit(form, parts)
        for parameter in _parameters(form, target, groups):
            if parameter in edits:
                raise PatchError(f"expected one edit for each parameter, got two for {parameter}")
            edits[parameter] = edit
    if not edits:
        raise PatchError("expected a patch that edits something, got none")
    return edits


def apply(pipe: Any, entry: Entry, check: Check) -> None:
    """Apply a patch; see `Patch.apply`."""
    live = _find(pipe, entry)
    states = _settle(pipe, entry, live)
    for name, state in states.items():
        if any(other.digest == entry.digest for other in state.stack):
            raise PatchError(f"expected a patch that is not applied yet, got one that {name} already carries")
    candidates, dtypes = _fingerprints(pipe, live, states)
    check(candidates, dtypes)
    new = {}
    for name, parameter in live.items():
        state = states[_component(name)]
        new[name] = _fold(name, state.originals.get(name, parameter.data), [*state.stack, entry])
        if not torch.isfinite(new[name]).all():
            advice = "load the pipeline in float32" if parameter.dtype.itemsize == 2 else "its values are too large"
            raise PatchError(f"the edited {name} does not fit {parameter.dtype}; {advice}")
    for name, parameter in live.items():
        states[_component(name)].originals.setdefault(name, parameter.data)
        parameter.data = new[name]
    for name, state in states.items():
        state.stack.append(entry)
        setattr(component(pipe, name), _STATE, state)


def remove(pipe: Any, entry: Entry) -> None:
    """Remove a patch; see `Patch.remove`."""
    for name in sorted({_component(name) for name in entry.edits}):
        state = getattr(_root(pipe, name), _STATE, _State())
        if not any(other.digest == entry.digest for other in state.stack):
            raise PatchError(f"expected a patch that is applied to this pipeline, got one that {name} does not carry")
    live = _find(pipe, entry)
    states = _settle(pipe, entry, live)
    stacks = {name: [other for other in state.stack if other.digest != entry.digest] for name, state in states.items()}
    new = {name: _fold(name, states[_component(name)].originals[name], stacks[_component(name)]) for name in live}
    for name, parameter in live.items():
        parameter.data = new[name]
    for name, state in states.items():
        state.stack = stacks[name]
        needed = {parameter for other in state.stack for parameter in other.edits}
        state.originals = {key: value for key, value in state.originals.items() if key in needed}
        if state.stack:
            setattr(component(pipe, name), _STATE, state)
        else:
            delattr(component(pipe, name), _STATE)


def applied(pipe: Any) -> list[Entry]:
    """The patches that the components of a pipeline carry, in the order in which they were applied."""
    found: dict[str, Entry] = {}
    for part in getattr(pipe, "__dict__", {}).values():
        if isinstance(part, nn.Module):
            state = getattr(getattr(part, "_orig_mod", part), _STATE, _State())
            found |= {entry.digest: entry for entry in state.stack}
    return sorted(found.values(), key=lambda entry: entry.order)


def is_applied(pipe: Any, entry: Entry) -> bool:
    """Whether every component of the patch carries it, with weights that are what was written last."""
    try:
        states = _settle(pipe, entry, _find(pipe, entry))
    except PatchError:
        return False
    return all(any(other.digest == entry.digest for other in state.stack) for state in states.values())


def base_weights(pipe: Any, entry: Entry, check: Check) -> dict[str, torch.Tensor]:
    """The weights that `entry` was fitted on, whether or not the pipeline carries patches now.

    Raises:
        PatchError: From `check`, when they are neither the live weights nor the original ones.
    """
    live = _find(pipe, entry)
    states = {name: getattr(component(pipe, name), _STATE, _State()) for name in {_component(key) for key in live}}
    candidates, dtypes = _fingerprints(pipe, live, states)
    check(candidates, dtypes)
    return {name: states[_component(name)].originals.get(name, parameter.data) for name, parameter in live.items()}


def _find(pipe: Any, entry: Entry) -> dict[str, nn.Parameter]:
    live = {}
    try:
        for name in sorted({_component(name) for name in entry.edits}):
            refuse_streaming(name, component(pipe, name))
        for name, edit in entry.edits.items():
            live[name] = find_parameter(pipe, name, linear=edit.form != "dense")
    except ValueError as error:
        raise PatchError(str(error)) from None
    names: dict[int, str] = {}
    for name, parameter in live.items():
        if names.setdefault(id(parameter), name) != name:
            raise PatchError(f"expected one edit for each parameter, got two for {name}: it is {names[id(parameter)]}")
    for name, edit in entry.edits.items():
        shape, wanted = tuple(live[name].shape), edit.shape()
        if len(shape) != len(wanted) or any(w not in (None, s) for s, w in zip(shape, wanted, strict=True)):
            raise PatchError(f"the patch is for another model: {name} has shape {shape}, the edit needs {wanted}")
    return live


def _settle(pipe: Any, entry: Entry, live: Mapping[str, nn.Parameter]) -> dict[str, _State]:
    """The states of the components of `entry`, after checking that the live weights are what was written last.

    The kept originals follow the dtype and device of the live weights.
    """
    states, names = {}, {id(parameter): name for name, parameter in live.items()}
    for name in sorted({_component(parameter) for parameter in entry.edits}):
        old = getattr(component(pipe, name), _STATE, _State())
        originals = {}
        for key, original in old.originals.items():
            try:
                parameter = find_parameter(pipe, key, linear=False)
            except ValueError as error:
                raise PatchError(str(error)) from None
            if names.get(id(parameter), key) != key:
                raise PatchError(f"expected one name for {key}, which a patch edits, got {names[id(parameter)]}, too")
            if not _close(_fold(key, original, old.stack), parameter.data):
                raise PatchError(
                    f"{key} was changed after a patch was applied (was a LoRA fused, or were weights loaded?); undo "
                    "that first, or load the pipeline anew"
                )
            originals[key] = original.to(parameter.device, parameter.dtype)
        states[name] = _State(list(old.stack), originals)
    return states


def _fingerprints(
    pipe: Any, live: Mapping[str, nn.Parameter], states: Mapping[str, _State]
) -> tuple[dict[str, dict[str, str]], dict[str, torch.dtype]]:
    """Fingerprints of the live weights and, where a patch replaced them, of the original ones."""
    candidates: dict[str, dict[str, str]] = {}
    for name, state in states.items():
        mine = {key: parameter.data for key, parameter in live.items() if _component(key) == name}
        for key, value in tensor_hashes(mine, owner=component(pipe, name)).items():
            candidates[key] = {"live": value}
        kept = {key: original for key, original in state.originals.items() if key in mine}
        for key, value in tensor_hashes(kept).items():
            candidates[key]["original"] = value
    return candidates, {name: parameter.dtype for name, parameter in live.items()}


def _fold(name: str, weight: torch.Tensor, stack: list[Entry]) -> torch.Tensor:
    for entry in stack:
        if name in entry.edits:
            weight = entry.edits[name].apply(weight, entry.strength)
    return weight


def _close(expected: torch.Tensor, live: torch.Tensor) -> bool:
    expected = expected.to(live.device, live.dtype)
    if torch.equal(expected, live):
        return True
    if expected.shape != live.shape:
        return False
    # Another device or thread count may round a product differently, by a few units in the last place.
    tolerance = 4 * torch.finfo(live.dtype).eps * expected.abs().max().item()
    return bool((expected.double() - live.double()).abs().max() <= tolerance)


def _root(pipe: Any, name: str) -> nn.Module:
    try:
        return component(pipe, name)
    except ValueError as error:
        raise PatchError(str(error)) from None


def _component(name: str) -> str:
    return name.partition(".")[0]


def _parameters(form: str, target: str, groups: Mapping[str, Any]) -> list[str]:
    if form == "dense":
        return [target]
    if form == "lowrank":
        return [f"{target}.weight"]
    ports = groups.get(target)
    if not isinstance(ports, list) or not ports or not all(isinstance(p, str) and _PORT.fullmatch(p) for p in ports):
        raise PatchError(f"expected the ports of group {target!r} in the metadata, got {ports!r:.60}")
    return [f"{port}.weight" for port in ports]


def _check_parts(name: str, form: str, parts: Mapping[str | None, torch.Tensor]) -> None:
    if set(parts) not in _PARTS[form]:
        wanted = " or ".join("+".join(str(part) for part in sorted(map(str, choice))) for choice in _PARTS[form])
        raise PatchError(f"expected the parts {wanted} of {name!r}, got {'+'.join(sorted(map(str, parts)))}")
    shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
    if form == "dense":
        if 0 in shapes[None]:
            raise PatchError(f"expected values in {name!r}, got shape {shapes[None]}")
        return
    if any(len(shape) != 2 or 0 in shape for shape in shapes.values()):
        raise PatchError(f"expected matrices in {name!r}, got shapes {shapes}")
    square = form == "transform"
    if "T" in parts:
        fits = shapes["T"][0] == shapes["T"][1]
    else:
        fits = shapes["A"][0] == shapes["B"][1] and (not square or shapes["A"][1] == shapes["B"][0])
    if not fits:
        raise PatchError(f"expected factors of {name!r} that fit each other, got shapes {shapes}")
