"""The patch of a method that edits no weight: hooks, and the weights through which text enters as its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from erasers.closed_form.ports import port_hashes
from erasers.concept import Concept
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
) -> Patch:
    """The patch.

    Args:
        method: Its name.
        config: Its hyper-parameters.
        pipe: What it was fitted on.
        concepts: What was erased.
        hooks: Parts by (target, kind).
    """
    groups = port_groups(pipe)
    weights = {port.parameter: port.module.weight for group in groups for port in group.ports}
    dtype = next(iter(weights.values())).dtype
    base, readers = port_hashes(pipe, groups), text_readers(pipe)
    meta = patch_meta(method, config, concepts, base, dtype, weights=weights, readers=readers)
    tensors = {
        # Of its own for each hook: a file holds no tensor twice.
        f"hook/{target}/{kind}/{part}": value.detach().to("cpu", torch.float32).clone()
        for (target, kind), parts in hooks.items()
        for part, value in parts.items()
    }
    return Patch(tensors, meta)
