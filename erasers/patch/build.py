"""What a method needs to write its patch: metadata that says where it belongs, and a transform in its smallest form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from erasers.concept import Concept
from erasers.concept.captions import caption_meta
from erasers.files.tensors import FORMAT
from erasers.models.ports import Group
from erasers.patch.patch import Patch
from erasers.patch.sketch import sketches
from erasers.version import library_version

_MAX_LISTED = 32


def transform_patch(
    method: str,
    config: Mapping[str, Any],
    concepts: Sequence[Concept],
    edits: Sequence[tuple[Group, torch.Tensor, torch.Tensor]],
    hashes: Mapping[str, str],
    readers: Mapping[str, str] | None = None,
) -> Patch:
    """The patch of one transform T = I + B A for each group of ports.

    Args:
        method: Its name, for the metadata.
        config: Its hyper-parameters, likewise.
        concepts: What was erased.
        edits: (ports, A `[r, d]`, B `[d, r]`); d may be less than the input width of pooled ports.
        hashes: Fingerprint of each port's weight by parameter name.
        readers: What read the text, as `text_readers` gives it.

    Raises:
        PatchError: The factors do not fit the ports, or are not finite.
    """
    tensors: dict[str, torch.Tensor] = {}
    for group, a, b in edits:
        tensors |= {f"transform/{group.name}/{part}": tensor for part, tensor in _smallest(group, a, b).items()}
    weights = {port.parameter: port.module.weight for group, _, _ in edits for port in group.ports}
    meta = patch_meta(
        method,
        config,
        concepts,
        {name: hashes[name] for name in weights},
        edits[0][0].ports[0].module.weight.dtype,
        groups={group.name: [port.name for port in group.ports] for group, _, _ in edits},
        weights=weights,
        readers=readers,
    )
    return Patch(tensors, meta)


def patch_meta(
    method: str,
    config: Mapping[str, Any],
    concepts: Sequence[Concept],
    base: Mapping[str, str],
    dtype: torch.dtype,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
    readers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The metadata of a patch.

    Args:
        method: Name of what made it.
        config: Its hyper-parameters.
        concepts: What was erased.
        base: Fingerprint of each weight that it was fitted on, by parameter name.
        dtype: Theirs.
        groups: Names of the ports of each `transform/` by its group.
        weights: Those weights, for the sketches by which they are known in bfloat16; None: they are known exactly.
        readers: What read the text, as `text_readers` gives it; None where that does not matter.
    """
    meta = {
        "format": FORMAT,
        "library": library_version(),
        "method": method,
        "config": dict(config),
        "concepts": [concept_meta(concept) for concept in concepts],
        "groups": {name: list(ports) for name, ports in (groups or {}).items()},
        "base": dict(base),
        "base_dtype": str(dtype).removeprefix("torch."),
    }
    if weights is not None:
        meta["sketches"] = sketches(weights)
    return meta if readers is None else meta | {"readers": dict(readers)}


def _smallest(group: Group, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
    """A and B, or T where that is smaller, as wide as the input of the ports."""
    layer = group.ports[0].module
    dtype = torch.float64 if layer.weight.dtype == torch.float64 else torch.float32
    rank, width = a.shape[0], layer.in_features
    a, b = (torch.nn.functional.pad(factor, (0, width - factor.shape[1])) for factor in (a, b.T))
    factors = {"A": a, "B": b.T} if 2 * rank < width else {"T": torch.eye(width, dtype=a.dtype) + b.T @ a}
    return {name: factor.to("cpu", dtype).contiguous() for name, factor in factors.items()}


def concept_meta(concept: Concept) -> dict[str, Any]:
    """A concept as JSON-able values; pictures are only counted, and so are long lists, with their sha256.

    Everyday captions among what is preserved are recorded apart, by the name and sha256 of their collection.
    """
    fields = ("name", "aliases", "kind", "neighbours")
    own, captions = caption_meta(concept.preserve)
    values: dict[str, Any] = {field: getattr(concept, field) for field in fields} | {"preserve": tuple(own)}
    for field, value in values.items():
        if isinstance(value, tuple) and len(value) > _MAX_LISTED:
            digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()
            values[field] = {"count": len(value), "sha256": digest}
    return {key: value for key, value in (values | {"captions": captions}).items() if value} | {
        "anchor": concept.anchor,
        "images": len(concept.images),
    }
