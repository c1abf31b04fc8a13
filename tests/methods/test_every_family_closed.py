"""Closed forms other than UCE and RECE on every family: a patch moves text weights alone, and what it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families.all import FAMILIES
from support.selection import cases
from support.tiny import same, weights

from erasers import Concept, get_eraser
from erasers.models.ports import port_groups

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:text also enters:UserWarning"),
    pytest.mark.filterwarnings("ignore:the values of .* are turned:UserWarning"),
    pytest.mark.filterwarnings("ignore:preserved states have:UserWarning"),
]

STAR = Concept("star", anchor="circle", preserve=["moon"])
METHODS: dict[str, dict[str, Any]] = {"dp": {}, "leace": {"templates": ("{}",)}, "oce": {}, "speed": {}}
QUICK = {
    ("dp", "flux"),
    ("dp", "lumina2"),
    ("leace", "sd3"),
    ("leace", "pixart"),
    ("oce", "flux"),
    ("oce", "wan"),
    ("speed", "sd3"),
    ("speed", "qwenimage"),
}


@pytest.mark.parametrize(("method", "family"), cases(METHODS, FAMILIES, default=lambda *case: case in QUICK))
def test_it_edits_text_weights_alone(method: str, family: str, tmp_path: Path) -> None:
    pipe = FAMILIES[family].build(tmp_path / "model")
    before, length = weights(pipe), FAMILIES[family].options.get("max_sequence_length")
    patch = get_eraser(method, **METHODS[method], max_sequence_length=length, cache=False, everyday=False).fit(
        pipe, STAR
    )
    assert same(before, weights(pipe))
    ports = {port.parameter for group in port_groups(pipe) for port in group.ports}
    assert set(patch.parameters) <= ports
    with patch.applied(pipe):
        after = weights(pipe)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(patch.parameters)
    assert same(before, weights(pipe))
