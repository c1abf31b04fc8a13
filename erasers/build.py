"""What a method needs to write its patch: the edit in its smallest form, with metadata that says where it belongs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from erasers.concept import Concept
from erasers.eraser import Eraser
from erasers.patch import Patch
from erasers.patch_file import FORMAT
from erasers.ports import Port
from erasers.version import library_version

_MAX_LISTED = 32


def transform_patch(
    eraser: Eraser,
    concepts: Sequence[Concept],
    ports: Sequence[Port],
    a: torch.Tensor,
    b: torch.Tensor,
    hashes: Mapping[str, str],
) -> Patch:
    """The patch of one transform T = I + B A shared by all ports.

    Args:
        eraser: The method, for the metadata.
        concepts: What was erased.
        ports: The layers that are edited, all of input width d.
        a: A `[r, d]`.
        b: B `[d, r]`.
        hashes: Fingerprint of each port's weight by parameter name.

    Raises:
        PatchError: The factors do not fit the ports, or are not finite.
    """
    dtype = torch.float64 if ports[0].module.weight.dtype == torch.float64 else torch.float32
    rank, width = a.shape
    group: dict[str, torch.Tensor]
    if 2 * rank < width:
        group = {"transform/text/A": a.to(dtype), "transform/text/B": b.to(dtype)}
    else:
        group = {"transform/text/T": (torch.eye(width, dtype=a.dtype) + b @ a).to(dtype)}
    meta = {
        "format": FORMAT,
        "library": library_version(),
        "method": eraser.name,
        "config": eraser.config(),
        "concepts": [concept_meta(concept) for concept in concepts],
        "groups": {"text": [port.name for port in ports]},
        "base": {port.parameter: hashes[port.parameter] for port in ports},
        "base_dtype": str(ports[0].module.weight.dtype).removeprefix("torch."),
    }
    return Patch({name: tensor.cpu().contiguous() for name, tensor in group.items()}, meta)


def concept_meta(concept: Concept) -> dict[str, Any]:
    """A concept as JSON-able values; pictures are only counted, and so are long lists, with their sha256."""
    fields = ("name", "aliases", "kind", "preserve", "neighbours")
    found = {field: getattr(concept, field) for field in fields}
    for field, value in found.items():
        if isinstance(value, tuple) and len(value) > _MAX_LISTED:
            digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()
            found[field] = {"count": len(value), "sha256": digest}
    return {key: value for key, value in found.items() if value} | {
        "anchor": concept.anchor,
        "images": len(concept.images),
    }
