"""Every family with every method in every form: works as baked, or is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from support.families.all import FAMILIES
from support.families.base import draw
from support.families.patches import stock_load
from support.families.variants import VARIANTS, classes
from support.selection import diagonal, only
from support.tables import DOCS, FORMS, render
from support.tiny import same, weights

from erasers import Concept, ErasedPipeline, Patch, PatchError, get_eraser, list_erasers, load_lora
from erasers.attacks import list_attacks
from erasers.eraser import eraser_class
from erasers.models.families import FAMILIES as TABLE
from erasers.models.inputs import unfit_reason
from erasers.models.ports import find_family

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:text also enters:UserWarning"),
    pytest.mark.filterwarnings("ignore:the .* ports are not edited:UserWarning"),
]

STAR = Concept("star", anchor="circle", preserve=["moon"])
QUICK: dict[str, dict[str, Any]] = {"uce": {"ridge": 0.01}, "rece": {"ridge": 0.01, "rounds": 1}}
NO_LORA = {"pixart", "pixart-sigma", "hunyuandit", "luminanext", "prx"}
KOHYA = {"sd1", "sd2", "sdxl", "sd3", "sd35", "flux", "animatediff"}
REASONS = {
    "LoRA": "stock diffusers loads no LoRA into this denoiser; use delta",
    "kohya": "this denoiser has no LoRA of this form that diffusers and web UIs read alike",
}
EXACT: dict[str, Any] = {"rows": "all", "preserve_rows": "all", "ridge": 1e-6, "preserve_scale": 1.0, "cache": False}
Note = Callable[[str, str, dict[str, Any]], None]


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Note:
    return lambda part, key, found: record_property("support", json.dumps([part, key, found]))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pipe(family: str, tmp_path: Path) -> Any:
    return FAMILIES[family].build(tmp_path / "model")


def supported(family: str, form: str) -> bool:
    return form != "LoRA" and form != "kohya" or (family in KOHYA if form == "kohya" else family not in NO_LORA)


def length(family: str) -> int | None:
    found: int | None = FAMILIES[family].options.get("max_sequence_length")
    return found


def picture(pipe: Any, family: str, text: str = "a picture of star") -> torch.Tensor:
    # Guidance multiplies what rounding does.
    return draw(pipe, text, {**FAMILIES[family].options, "guidance_scale": 1.0})


def test_every_method_has_options():
    closed = {"realera", "dp", "oce", "leace", "speed"}
    # The others train, know a few families only, or need an autoencoder: their own tests say what they support.
    trained = {name for name in list_erasers() if eraser_class(name).trains}
    hooked = {
        "semantic_surgery",
        "adavd",
        "casteer",
        "safree",
        "sld",
        "negative_prompt",
        "itd",
        "concept_lancet",
        "eim",
    }
    assert set(list_erasers()) == {*QUICK, *trained, *closed, *hooked}


@pytest.mark.parametrize(("family", "method", "form"), diagonal(FAMILIES, QUICK, FORMS))
def test_form(family, pipe, method, form, tmp_path, note):
    patch = get_eraser(method, **QUICK[method], max_sequence_length=length(family), cache=False).fit(pipe, STAR)
    before, plain = weights(pipe), picture(pipe, family)
    with patch.applied(pipe):
        baked = picture(pipe, family)
    assert same(before, weights(pipe))
    assert (baked - plain).abs().max() > 1e-3
    if not supported(family, form):
        with pytest.raises(PatchError, match=r"diffusers loads|for the kohya form"):
            make(form, patch, pipe, tmp_path)
        note("cells", f"{family}/{method}/{form}", {"works": False, "reason": REASONS[form]})
        return
    found = picture(make(form, patch, pipe, tmp_path), family)
    assert (found - baked).abs().max() <= (0 if form in ("baked", "delta") else 2e-5)
    note("cells", f"{family}/{method}/{form}", {"works": True})


def make(form: str, patch: Patch, pipe: Any, folder: Path) -> Any:
    """A pipeline that is erased by that form of the patch."""
    if form == "baked":
        return patch.apply(pipe)
    if form == "hooks":
        return patch.to_hooks(pipe).apply(pipe)
    if form == "delta":
        for name, weight in load_file(patch.to_delta(pipe, folder)).items():
            component, _, path = name.partition(".")
            assert not getattr(pipe, component).load_state_dict({path: weight}, strict=False).unexpected_keys
        return pipe
    if form == "folder":
        with patch.applied(pipe):
            ErasedPipeline.save_pretrained(pipe, folder / "erased", [patch])
        return type(pipe).from_pretrained(folder / "erased")
    patch.to_lora(pipe, folder / "lora", form="peft" if form == "LoRA" else form)
    if form == "kohya" and hasattr(pipe, "text_encoder_3"):
        return load_lora(pipe, folder / "lora")
    stock_load(pipe, folder / "lora")
    return pipe


@pytest.mark.parametrize("family", only(FAMILIES, "sd1", "sd3", "flux", "pixart"))
def test_exactness(family, pipe, note):
    """Figures for the table, and a bound where the ports are all that text enters by."""
    denoiser = find_family(pipe)[0]
    kinds = ("text", "pooled") if denoiser.pooled and family not in ("sd1", "sd2", "animatediff") else ("text",)
    before = {text: draw(pipe, text, FAMILIES[family].options) for text in ("star", "circle", "moon")}
    figures = {
        "pipeline": type(pipe).__name__,
        "kind": denoiser.kind,
        "gap": relative(before["star"], before["circle"]),
    }
    for prefix, ports in (("", kinds), ("joint_", ("joint",) if denoiser.joint else ())):
        if not ports:
            continue
        patch = get_eraser("uce", **EXACT, ports=ports, max_sequence_length=length(family)).fit(pipe, STAR)
        with patch.applied(pipe):
            after = {text: draw(pipe, text, FAMILIES[family].options) for text in ("star", "moon")}
        figures[f"{prefix}reached"] = relative(after["star"], before["circle"])
        figures[f"{prefix}kept"] = relative(after["moon"], before["moon"])
    assert figures["gap"] > 1e-2
    assert figures["kept"] < 1e-3
    assert figures["reached"] < 1e-3 or denoiser.unedited
    note("families", family, figures)


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


def test_the_page_is_the_rendering_of_the_notes(request: pytest.FixtureRequest):
    if request.config.getoption("--write-support"):
        pytest.skip("this run writes the page")
    notes = json.loads((DOCS / "support.json").read_text(encoding="utf-8"))
    assert (DOCS / "support.md").read_text(encoding="utf-8") == render(notes)
    assert len(notes["cells"]) == len(FAMILIES) * len(QUICK) * len(FORMS)
    assert set(notes["attacks"]) == {f"{family}/{name}" for family in FAMILIES for name in list_attacks()}
    unfit = [name for name in classes() if unfit_reason(getattr(diffusers, name))]
    assert set(notes["pipelines"]) == {*VARIANTS, *unfit}
    assert {about["kind"] for about in notes["families"].values()} == {row.kind for row in TABLE}
