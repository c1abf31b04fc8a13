"""Which layers of a denoiser are trained, by its family."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.families.all import FAMILIES
from support.selection import only

from erasers.diffusion.adaptors.table import denoiser_of
from erasers.training.layers import crosses, denoiser_layers, denoiser_names

JOINT = {"attn.to_k", "attn.to_v", "attn.add_k_proj", "attn.add_v_proj"}
CROSS = {"attn2.to_k", "attn2.to_v"}
STRICT = {
    "sd1": CROSS,
    "sdxl": CROSS,
    "sd3": JOINT,
    "sd35": JOINT | CROSS,
    "flux": JOINT,
    "flux2": JOINT | {"attn.to_qkv_mlp_proj"},
    "auraflow": JOINT,
    "qwenimage": JOINT,
    "pixart": CROSS,
    "sana": CROSS,
    "wan": CROSS,
    "lumina2": {"attn.to_k", "attn.to_v"},
    "zimage": {"attention.to_k", "attention.to_v"},
    "cogview4": {"attn1.to_k", "attn1.to_v"},
}
"""Tiny pipeline -> the last steps of the paths of what ESD calls `x-strict`."""


def chosen(pipe: Any, which: str) -> set[str]:
    """Paths of layers of the denoiser."""
    denoiser = next(getattr(pipe, name) for name in ("transformer", "unet") if hasattr(pipe, name))
    wanted = denoiser_layers(which, crosses=crosses(pipe))
    return {path for path, module in denoiser.named_modules() if wanted(module, path)}


@pytest.mark.parametrize("family", only(STRICT, "sdxl", "sd35", "flux", "wan"))
def test_keys_and_values_are_those_of_text_and_picture(family: str, tmp_path: Path) -> None:
    pipe = FAMILIES[family].build(tmp_path)
    strict, x, u, everything = (chosen(pipe, which) for which in ("x-strict", "x", "u", "all"))
    assert {".".join(path.split(".")[-2:]) for path in strict} == STRICT[family]
    assert strict < x
    assert x | u == everything
    assert not x & u
    assert x <= chosen(pipe, "attention")
    assert not any(re.search(r"(^|[._])norm", path) for path in everything)
    assert any("single" in path for path in strict) == (family in ("flux", "flux2", "auraflow"))


def paths_of(pipe: Any, which: str) -> set[str]:
    """Paths of the layers of a transformer that are trained."""
    names = denoiser_names(pipe, which)
    assert all(name.startswith("transformer.") for name in names)
    return {name.removeprefix("transformer.").rpartition(".")[0] for name in names}


def test_names_are_those_of_all_denoisers(tmp_path: Path) -> None:
    pipe = FAMILIES["pixart"].build(tmp_path)
    assert paths_of(pipe, "x-strict") == chosen(pipe, "x-strict")
    assert denoiser_of(pipe) is pipe.transformer


@pytest.mark.parametrize(
    ("family", "entrances"),
    [
        ("sd3", {"context_embedder", "time_text_embed.text_embedder.linear_1"}),
        ("flux", {"context_embedder", "time_text_embed.text_embedder.linear_1"}),
        ("auraflow", {"context_embedder"}),
        ("qwenimage", {"txt_in"}),
    ],
)
def test_where_text_is_one_sequence_with_the_picture_its_entrances_are_trained_with_what_reads_it(
    family: str, entrances: set[str], tmp_path: Path
) -> None:
    pipe = FAMILIES[family].build(tmp_path)
    for which in ("x", "cross", "x-strict"):
        assert paths_of(pipe, which) == chosen(pipe, which) | entrances
    assert paths_of(pipe, "u") == chosen(pipe, "u") - entrances
    assert paths_of(pipe, "all") == chosen(pipe, "all") == paths_of(pipe, "x") | paths_of(pipe, "u")
    assert paths_of(pipe, "attention") == chosen(pipe, "attention")
