"""Several patches as one: W T + B A is closed under transforms from the right and low-rank additions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from erasers.files.tensors import PatchError
from erasers.patch.patch import Patch

_Parts = dict[str, torch.Tensor]


def merged(patches: Sequence[Patch], *, method: str, config: Mapping[str, Any]) -> Patch:
    """One patch that does at strength 1 what several do on top of each other, but for rounding.

    On W T1 + B1 A1 of those before, T2 and B2 A2 make (W T1 + B1 A1) T2 + B2 A2 = W T1 T2 + B1 (A1 T2) + B2 A2: the
    transforms of a group of ports are multiplied, low-rank additions to a layer are put side by side, and hooks stay
    what they are. So the patch has about the bytes of all of them.

    Args:
        patches: In the order in which they are applied; each was fitted on the pipeline with those before it, or on the
            plain one.
        method: Name of what made it, for the metadata.
        config: Its hyper-parameters, likewise.

    Raises:
        PatchError: Dense values of a parameter that another patch edits, too; hooks on one module, or in front of
            weights that a later patch edits; groups of one name with other ports.
    """
    whole, meta = _Tensors(), dict[str, Any]()
    for number, patch in enumerate(patches):
        for other in patches[:number]:
            _check(other, patch)
        whole = _on_top(whole, _Tensors.of(patch), patch.meta["groups"])
        concepts = meta.get("concepts", [])
        # Weights that an earlier one edited had the fingerprints that this one says.
        facts = {key: {**patch.meta[key], **meta.get(key, {})} for key in _FACTS if key in patch.meta}
        fresh = [concept for concept in patch.meta["concepts"] if concept not in concepts]
        meta = {**patch.meta, **meta, **facts, "concepts": concepts + fresh}
    return Patch(whole.named(), {**meta, "method": method, "config": dict(config)})


_FACTS = ("groups", "base", "sketches", "readers")


@dataclass(frozen=True)
class _Tensors:
    """Tensors of a patch by what they are of: transforms of groups, low-rank additions to layers, and all others."""

    transforms: Mapping[str, _Parts] = field(default_factory=dict)
    lowranks: Mapping[str, _Parts] = field(default_factory=dict)
    others: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, patch: Patch) -> _Tensors:
        parts: dict[str, dict[str, _Parts]] = {"transform": {}, "lowrank": {}}
        others: dict[str, torch.Tensor] = {}
        for name, tensor in patch.tensors.items():
            form, target, *part = name.split("/")
            if form in parts:
                parts[form].setdefault(target, {})[part[0]] = tensor
            else:
                others[name] = tensor
        return cls(parts["transform"], parts["lowrank"], others)

    def named(self) -> dict[str, torch.Tensor]:
        """All of them by their names in a patch."""
        forms = {"transform": self.transforms, "lowrank": self.lowranks}
        return {
            f"{form}/{target}/{part}": tensor.contiguous()
            for form, targets in forms.items()
            for target, parts in targets.items()
            for part, tensor in parts.items()
        } | dict(self.others)


def _check(before: Patch, patch: Patch) -> None:
    """Refuse what has no place on top of an earlier patch."""
    groups = before.meta["groups"]
    for name, ports in patch.meta["groups"].items():
        if groups.get(name, ports) != ports:
            raise PatchError(f"expected patches of one pipeline, got other ports of the group {name!r}")
    for name in sorted(before.changes.keys() & patch.changes.keys()):
        if "dense" in (before.changes[name].form, patch.changes[name].form):
            raise PatchError(
                f"expected transforms or low-rank edits of {name}, which both patches edit, got dense values; fit them "
                "with rank > 0, or apply one patch after the other"
            )
    edited = {name.partition(".")[0] for name in patch.changes}
    targets = {hook.target for hook in patch.hooks}
    for hook in before.hooks:
        if hook.target in targets:
            raise PatchError(f"expected hooks on different modules, got two patches with hooks on {hook.target}")
        if hook.bakes and hook.component in edited:
            raise PatchError(f"expected the patch with hooks on {hook.target} after the one that edits its weights")


def _on_top(below: _Tensors, above: _Tensors, groups: Mapping[str, Sequence[str]]) -> _Tensors:
    """Those of both patches, of which the upper one has these groups of ports."""
    after = {port: above.transforms[group] for group, ports in groups.items() for port in ports}
    transforms = {**below.transforms, **above.transforms}
    for group in below.transforms.keys() & above.transforms.keys():
        transforms[group] = _product(below.transforms[group], above.transforms[group])
    lowranks = dict(above.lowranks)
    for layer, parts in below.lowranks.items():
        down = _transformed(parts["A"], after[layer]) if layer in after else parts["A"]
        lowranks[layer] = _beside({**parts, "A": down}, above.lowranks.get(layer))
    return _Tensors(transforms, lowranks, {**below.others, **above.others})


def _transformed(rows: torch.Tensor, transform: _Parts) -> torch.Tensor:
    """`rows` `[r, d]` times I + B A or T, in float64."""
    parts = {name: part.double() for name, part in transform.items()}
    wide = rows.double()
    new = wide @ parts["T"] if "T" in parts else wide + wide @ parts["B"] @ parts["A"]
    return new.to(rows.dtype)


def _product(below: _Parts, above: _Parts) -> _Parts:
    """T1 T2 in the smaller form: (I + B1 A1)(I + B2 A2) = I + B1 A1 (I + B2 A2) + B2 A2."""
    if "T" in below:
        return {"T": _transformed(below["T"], above)}
    width = below["A"].shape[1]
    if "T" not in above and 2 * (len(below["A"]) + len(above["A"])) < width:
        return _beside({**below, "A": _transformed(below["A"], above)}, above)
    identity = torch.eye(width, dtype=torch.float64)
    return {"T": _transformed(_transformed(identity, below), above).to(below["A"].dtype)}


def _beside(parts: _Parts, more: _Parts | None) -> _Parts:
    """The factors of B1 A1 + B2 A2."""
    if more is None:
        return parts
    return {"A": torch.cat([parts["A"], more["A"]]), "B": torch.cat([parts["B"], more["B"]], dim=1)}
