"""Every class of pipelines that diffusers has around the denoisers of the families: it works, or is refused by name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from support.families.all import FAMILIES
from support.families.variants import VARIANTS, build, classes
from support.selection import only
from support.tiny import same, weights

from erasers import Concept, Patch, UnsupportedPipeline, get_eraser
from erasers.asks import PlainPrompt
from erasers.evaluation.drawing import generate, plan
from erasers.evaluation.profile.profile import Profile
from erasers.evaluation.report.report import SETTINGS
from erasers.models.inputs import Pictures, inputs_of, undrawn_reason, unfit_reason
from erasers.models.ports import find_family

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:text also enters:UserWarning"),
    pytest.mark.filterwarnings("ignore:.* pipe.controlnet:UserWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
]

STAR = Concept("star", anchor="circle", preserve=["moon"])
EXACT: dict[str, Any] = {"rows": "all", "preserve_rows": "all", "ridge": 1e-6, "preserve_scale": 1.0, "cache": False}
PLAIN = Profile(None, None, 1, lambda concepts, samples: {})
CLASSES = classes()
UNFIT = [name for name in CLASSES if unfit_reason(getattr(diffusers, name))]
# Text enters these by a way that no port covers: T5's summary in Hunyuan-DiT, the nets' own layers elsewhere.
OTHER_WAYS = ("HunyuanDiT", "ControlNet")
Note = Callable[[str, str, dict[str, Any]], None]


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Note:
    return lambda part, key, found: record_property("support", json.dumps([part, key, found]))


# The first class around each family.
FIRST = {variant.family: name for name, variant in reversed(VARIANTS.items())}.values()


@pytest.fixture(params=only(VARIANTS, *FIRST))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_no_class_of_diffusers_is_missing(tmp_path):
    """Those that diffusers itself no longer maintains are left to the same rules, untried."""
    plain = {type(family.build(tmp_path / key)).__name__ for key, family in FAMILIES.items()}
    old = {key for key in CLASSES if ".deprecated." in getattr(diffusers, key).__module__}
    assert set(CLASSES) - plain - old - set(UNFIT) == set(VARIANTS)


@pytest.mark.parametrize("name", UNFIT)
def test_a_class_that_is_not_fit_is_refused_by_name(name, note):
    cls = getattr(diffusers, name)
    with pytest.raises(UnsupportedPipeline, match=f"^{name} is not supported: {unfit_reason(cls)}"):
        find_family(cls.__new__(cls))
    note("pipelines", name, {"takes": [], "reason": unfit_reason(cls), "fit": False, "drawn": False})


def test_a_class(name, note, tmp_path):
    """The patch changes the picture, comes off bit for bit, and leads the prompt to its anchor."""
    pipe = build(name, tmp_path)
    patch, before = fit(pipe, name), weights(pipe)
    reason = undrawn_reason(type(pipe))
    if not reason:
        star, circle = (draw(pipe, name, text) for text in ("star", "circle"))
    with patch.applied(pipe):
        # Z-Image's ControlNet has layers of the transformer as its own.
        moved = {key for key, now in weights(pipe).items() if not torch.equal(before[key], now)}
        assert {key for key in moved if not key.startswith("controlnet.")} == set(patch.parameters)
        erased = None if reason else draw(pipe, name, "star")
    assert same(before, weights(pipe))
    if erased is not None:
        assert relative(star, circle) > 1e-3
        assert relative(erased, star) > 1e-3
        assert torch.equal(draw(pipe, name, "star"), star)
        assert any(part in name for part in OTHER_WAYS) or relative(erased, circle) < 0.1 * relative(star, circle)
    takes = list(inputs_of(type(pipe)).arguments)
    note("pipelines", name, {"takes": takes, "reason": reason, "fit": True, "drawn": not reason})


def test_what_it_draws_from_is_said_before_any_work(name, tmp_path):
    pipe = build(name, tmp_path)
    takes = inputs_of(type(pipe))
    if undrawn_reason(type(pipe)):
        with pytest.raises(ValueError, match=f"{name} draws from .*, which cannot be given here"):
            plan(pipe, PLAIN, given(takes.arguments))
        return
    drawing = plan(pipe, PLAIN, given(takes.arguments))
    assert drawing.said.startswith(f"{name}, {drawing.profile.steps} steps")
    if takes.arguments and not takes.optional:
        with pytest.raises(ValueError, match=f"{name} draws from .*; expected --.* FILE, got none of them"):
            plan(pipe, PLAIN)


def test_before_and_after_have_one_noise_also_in_their_pictures(tmp_path):
    """This class encodes the control picture with noise of no generator."""
    pipe = build("StableDiffusion3ControlNetPipeline", tmp_path)
    settings = plan(pipe, replace(PLAIN, size=16), given(["control_image"]), steps=2).profile
    draws = [
        next(iter(generate(pipe, [PlainPrompt("star", seed)], **{key: getattr(settings, key) for key in SETTINGS})))
        for seed in (1, 1, 2)
    ]
    first, again, other = (images[0].tobytes() for images in draws)
    assert first == again
    assert first != other


SHARED = ["StableDiffusionImg2ImgPipeline", "FluxInpaintPipeline", "StableDiffusion3Img2ImgPipeline"]


@pytest.mark.parametrize("name", [*SHARED, "AnimateDiffPAGPipeline", "StableDiffusionXLControlNetPipeline"])
def test_a_patch_of_the_text_to_image_model_fits_pipelines_around_the_same_weights(name, tmp_path):
    plain, other = FAMILIES[VARIANTS[name].family].build(tmp_path / "plain"), build(name, tmp_path / "other")
    length = FAMILIES[VARIANTS[name].family].options.get("max_sequence_length")
    patches = [get_eraser("uce", max_sequence_length=length, cache=False).fit(pipe, STAR) for pipe in (plain, other)]
    assert same(dict(patches[0].tensors), dict(patches[1].tensors))
    with patches[0].applied(other):
        assert patches[0].is_applied(other)


def test_modules_that_go_from_frame_to_frame_are_no_ports(tmp_path):
    pipe = FAMILIES["animatediff"].build(tmp_path)
    names = [port for ports in fit(pipe, "").meta["groups"].values() for port in ports]
    paths = [path for path, _ in pipe.unet.named_modules() if path.endswith(("attn2.to_k", "attn2.to_v"))]
    assert any("motion_modules" in path for path in paths)
    assert sorted(names) == sorted(f"unet.{path}" for path in paths if "motion_modules" not in path)


@pytest.mark.filterwarnings("ignore:the (text|pooled) ports are not edited")
def test_a_pooled_port_of_a_pipeline_that_encodes_no_prompt_is_refused(tmp_path):
    pipe = build("LEditsPPPipelineStableDiffusionXL", tmp_path)
    with pytest.raises(UnsupportedPipeline, match="LEditsPPPipelineStableDiffusionXL encodes no plain prompt"):
        get_eraser("uce", ports=("pooled",), cache=False).fit(pipe, STAR)


def test_diffusers_still_does_not_save_what_inpainting_with_chroma_needs(tmp_path):
    """When this fails, the class can be drawn, and leaves the table of those that are not."""
    pipe = build("ChromaInpaintPipeline", tmp_path)
    with pytest.raises(AttributeError, match="guidance_embeds"):
        draw(pipe, "ChromaInpaintPipeline", "star")


def fit(pipe: Any, name: str) -> Patch:
    family = find_family(pipe)[0]
    pooled = family.pooled and getattr(pipe, "text_encoder_2", None) is not None and not name.startswith("LEdits")
    kinds = ("text", "pooled") if pooled else ("text",)
    length = FAMILIES[VARIANTS[name].family].options.get("max_sequence_length") if name else None
    return get_eraser("uce", **EXACT, ports=kinds, max_sequence_length=length).fit(pipe, STAR)


def given(arguments: Any) -> Pictures:
    return Pictures(**{key: picture(key, 16) for key in arguments})


def picture(key: str, side: int) -> Image.Image:
    return Image.linear_gradient("L").resize((side, side)).convert("L" if key == "mask" else "RGB")


def draw(pipe: Any, name: str, text: str) -> torch.Tensor:
    """Latents, or pixels where a class has no latents, from fixed noise and the same pictures."""
    variant = VARIANTS[name]
    options = {**FAMILIES[variant.family].options, "strength": 1.0, "num_frames": 2, **variant.options}
    if "num_frames" in FAMILIES[variant.family].options:
        options |= FAMILIES[variant.family].options
    side = options.get("height", 16)
    options |= {argument: picture(key, side) for key, argument in inputs_of(type(pipe)).arguments.items()}
    called = inspect.signature(type(pipe).__call__).parameters
    torch.manual_seed(5)  # some encode pictures with noise of no generator
    with torch.no_grad():
        output = pipe(
            prompt=text,
            generator=torch.Generator().manual_seed(3),
            **{key: value for key, value in options.items() if key in called},
        )
    frames = getattr(output, "images", None)
    return torch.as_tensor(output.frames if frames is None else frames)


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).norm() / reference.norm())
