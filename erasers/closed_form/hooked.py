"""The patch of a method that edits no weight: hooks, and the weights that they were fitted on as its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from erasers.closed_form.ports import port_hashes
from erasers.concept import Concept
from erasers.models.components import find_parameter
from erasers.models.ports import port_groups
from erasers.models.readers import text_readers
from erasers.patch import Patch
from erasers.patch.build import patch_meta


def hook_patch(
    method: str,
    config: Mapping[str, Any],
    pipe: Any,
    concepts: Sequence[Concept],
    hooks: Mapping[tuple[str, str], Mapping[str, torch.Tensor]],
    base: Mapping[str, str] | None = None,
) -> Patch:
    """The patch.

    Args:
        method: Its name.
        config: Its hyper-parameters.
        pipe: What it was fitted on.
        concepts: What was erased.
        hooks: Parts by (target, kind).
        base: Fingerprints of the weights that it was fitted on, by parameter name; None: those of the ports of text.
    """
    base = port_hashes(pipe, port_groups(pipe)) if base is None else base
    weights = {name: find_parameter(pipe, name, linear=False, edit=False) for name in base}
    dtype, readers = next(iter(weights.values())).dtype, text_readers(pipe)
    meta = patch_meta(method, config, concepts, base, dtype, weights=weights, readers=readers)
    tensors = {
        # Of its own for each hook: a file holds no tensor twice.
        f"hook/{target}/{kind}/{part}": value.detach().to("cpu", torch.float32).clone()
        for (target, kind), parts in hooks.items()
        for part, value in parts.items()
    }
    return Patch(tensors, meta)
