"""The metadata of a patch."""

from __future__ import annotations

import torch

from erasers import Concept
from erasers.patch.build import concept_meta, patch_meta
from erasers.patch.sketch import is_sketch
from erasers.version import library_version

STAR = Concept("star", anchor="circle")
BASE = {"unet.layer.weight": "0" * 64}


def test_metadata_says_what_made_a_patch_and_where_it_belongs() -> None:
    meta = patch_meta("uce", {"rank": 4}, [STAR], BASE, torch.bfloat16, groups={"text": ("unet.layer",)})
    assert meta == {
        "format": 1,
        "library": library_version(),
        "method": "uce",
        "config": {"rank": 4},
        "concepts": [concept_meta(STAR)],
        "groups": {"text": ["unet.layer"]},
        "base": BASE,
        "base_dtype": "bfloat16",
    }


def test_sketches_and_readers_are_there_only_when_known() -> None:
    plain = patch_meta("uce", {}, [], BASE, torch.float32)
    assert plain["groups"] == {}
    assert not {"sketches", "readers"} & plain.keys()
    weights = {"unet.layer.weight": torch.randn(40, 3, generator=torch.Generator().manual_seed(0))}
    meta = patch_meta("uce", {}, [], BASE, torch.float32, weights=weights, readers={"text_encoder": "plain"})
    assert meta["readers"] == {"text_encoder": "plain"}
    assert meta["sketches"].keys() == weights.keys()
    assert is_sketch(meta["sketches"]["unet.layer.weight"])
    # A weight of infinite values has no sketch, and the patch then says so of none.
    assert patch_meta("uce", {}, [], BASE, torch.float32, weights={"a": torch.tensor([torch.inf])})["sketches"] == {}
