"""What the tensors of a patch mean: by their names, the edit of each weight and the hooks that run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from erasers.files.tensors import PatchError
from erasers.models.components import FLOATS
from erasers.patch.adapter import Adapter
from erasers.patch.feature_hooks import FeatureGate, StepFeatures
from erasers.patch.hooks import Hook, PromptTransform
from erasers.patch.joint_shift import JointShift
from erasers.patch.membrane import Membrane
from erasers.patch.negative_prompt import NegativePrompt
from erasers.patch.safe_guidance import SafeGuidance
from erasers.patch.semantic_gate import SemanticGate
from erasers.patch.sparse import SparseConcepts
from erasers.patch.steering import Steering
from erasers.patch.step_rows import StepPictureRows, StepTextRows
from erasers.patch.trigger import TriggerProjection
from erasers.patch.value_gate import ValueGate

_TARGET = r"[\w.-]{1,500}"
_NAME = re.compile(rf"(?P<form>transform|lowrank|dense)/(?P<target>{_TARGET})(/(?P<part>[ABT]))?", re.ASCII)
_HOOK = re.compile(rf"hook/(?P<target>{_TARGET})/(?P<kind>\w{{1,50}})/(?P<part>\w{{1,50}})", re.ASCII)
KINDS: dict[str, type[Hook]] = {
    kind.kind: kind
    for kind in (
        PromptTransform,
        FeatureGate,
        StepFeatures,
        JointShift,
        NegativePrompt,
        StepPictureRows,
        StepTextRows,
        SparseConcepts,
        SafeGuidance,
        SemanticGate,
        Adapter,
        ValueGate,
        Steering,
        Membrane,
        TriggerProjection,
    )
}
"""The kinds of hooks that a patch may carry, by name: a closed list."""
NAME = re.compile(_TARGET, re.ASCII)
"""Modules, parameters and groups: nothing that a terminal, a path or a look-alike could make use of."""
_PARTS: dict[str, tuple[set[str | None], ...]] = {
    "transform": ({"A", "B"}, {"T"}),
    "lowrank": ({"A", "B"},),
    "dense": ({None},),
}


@dataclass(frozen=True, eq=False)
class Edit:
    """What happens to one weight.

    Args:
        form: `transform`, `lowrank` or `dense`.
        parts: A and B, or T, or (under None) the new value.
        first: A transform of the same weight, which comes before a low-rank addition.
    """

    form: str
    parts: Mapping[str | None, torch.Tensor]
    first: Edit | None = None

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
        return self._new(_wide(weight), strength).to(weight.dtype)

    def _new(self, old: torch.Tensor, strength: float) -> torch.Tensor:
        """The same of a weight in float32 or float64."""
        parts = self._as(old)
        if self.first is not None:
            old = self.first._new(old, strength)
        if self.form == "dense":
            return parts[None].clone() if strength == 1 else torch.lerp(old, parts[None], strength)
        if "T" in parts:
            shift = parts["T"] - torch.eye(old.shape[1], dtype=old.dtype, device=old.device)
            return torch.addmm(old, old, shift, alpha=strength)
        left = old @ parts["B"] if self.form == "transform" else parts["B"]
        return torch.addmm(old, left, parts["A"], alpha=strength)

    def factors(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(down `[r, d]`, up `[out, r]`) with W_new = W + up down.

        Raises:
            PatchError: A dense edit, which has no exact factors of low rank.
        """
        if self.form == "dense":
            raise PatchError("expected low-rank edits to write as a LoRA, got a dense one; save the patch instead")
        old = _wide(weight)
        parts = self._as(old)
        if self.first is not None:
            down, up = self.first.factors(weight)
            return torch.cat([down.to(old), parts["A"]]), torch.cat([up.to(old), parts["B"]], dim=1)
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

    def _as(self, weight: torch.Tensor) -> dict[str | None, torch.Tensor]:
        return {name: part.to(weight.device, weight.dtype) for name, part in self.parts.items()}


def _wide(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)


def parse(tensors: Mapping[str, torch.Tensor], groups: Mapping[str, list[str]]) -> tuple[dict[str, Edit], list[Hook]]:
    """The edits of a patch by parameter name, and its hooks.

    Raises:
        PatchError: Unknown names or kinds, missing parts, wrong shapes or dtypes, values that are not finite.
    """
    weights: dict[tuple[str, str], dict[str | None, torch.Tensor]] = {}
    hooks: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = (_HOOK if name.startswith("hook/") else _NAME).fullmatch(name)
        if not match:
            raise PatchError(
                "expected tensors named transform/, lowrank/, dense/ or hook/<module>/<kind>/<part>, got "
                f"{name!r:.80}; if a newer version wrote them, upgrade erasers"
            )
        if tensor.dtype not in FLOATS:
            raise PatchError(f"expected {name!r} as floating point, got {tensor.dtype}")
        if not torch.isfinite(tensor).all():
            raise PatchError(f"expected finite values in {name!r}, got NaN or infinity")
        if match.re is _HOOK:
            hooks.setdefault((match["target"], match["kind"]), {})[match["part"]] = tensor
        else:
            weights.setdefault((match["form"], match["target"]), {})[match["part"]] = tensor
    if not weights and not hooks:
        raise PatchError("expected a patch that edits something, got none")
    return _edits(weights, groups), [_hook(*key, hooks[key]) for key in sorted(hooks)]


def _edits(
    weights: Mapping[tuple[str, str], dict[str | None, torch.Tensor]], groups: Mapping[str, list[str]]
) -> dict[str, Edit]:
    edits: dict[str, Edit] = {}
    # Transforms come first.
    for (form, target), parts in sorted(weights.items(), key=lambda item: item[0], reverse=True):
        _check_parts(f"{form}/{target}", form, parts)
        edit = Edit(form, parts)
        for parameter in _parameters(form, target, groups):
            first = edits.get(parameter)
            if first and (first.form, form) != ("transform", "lowrank"):
                raise PatchError(f"expected one edit for each parameter, got two for {parameter}")
            if first and first.shape()[1] != edit.shape()[1]:
                widths = f"{first.shape()[1]} and {edit.shape()[1]}"
                raise PatchError(f"expected both edits of {parameter} of one width, got {widths}")
            edits[parameter] = replace(edit, first=first) if first else edit
    return edits


def _hook(target: str, kind: str, parts: Mapping[str, torch.Tensor]) -> Hook:
    if kind not in KINDS:
        raise PatchError(f"expected hooks of kind {' or '.join(KINDS)}, got {kind!r} on {target}; upgrade erasers")
    return KINDS[kind](target, parts)


def _parameters(form: str, target: str, groups: Mapping[str, list[str]]) -> list[str]:
    if form == "dense":
        return [target]
    if form == "lowrank":
        return [f"{target}.weight"]
    if target not in groups:
        raise PatchError(f"expected the ports of group {target!r} in the metadata, got none")
    return [f"{port}.weight" for port in groups[target]]


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
