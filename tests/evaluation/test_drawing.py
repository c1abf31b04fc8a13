"""How pictures are drawn: from what, by which class, in how many steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest
from PIL import Image
from support.families.all import FAMILIES
from support.families.variants import adapter, with_class
from support.tiny import make_unet

from erasers import Concept, PatchError, get_eraser
from erasers.asks import PlainPrompt
from erasers.evaluation.drawing import generate, own_sampler, plan
from erasers.evaluation.profile.profile import Profile
from erasers.evaluation.report.report import SETTINGS
from erasers.models.inputs import Pictures, call_arguments

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PLAIN = Profile(None, None, 4, lambda concepts, samples: {})
PHOTO, MASK = Image.new("RGB", (24, 16), "red"), Image.new("L", (48, 48), 255)


def built(pipe: Any, name: str, **parts: Any) -> Any:
    return with_class(name, {**pipe.components, **parts})


def drawn(drawing: Any, *texts: str) -> list[Image.Image]:
    asks = [PlainPrompt(text, 1) for text in texts]
    settings = {key: getattr(drawing.profile, key) for key in SETTINGS}
    return [image for images in generate(drawing.pipe, asks, **settings) for image in images]


# What is missing, and what is not taken


def test_what_is_missing_is_named_by_option(pipe):
    with pytest.raises(
        ValueError,
        match=r"InpaintPipeline draws from a picture and a mask; expected "
        r"--image FILE --mask FILE, got --image",
    ):
        plan(built(pipe, "StableDiffusionInpaintPipeline"), PLAIN, Pictures(PHOTO))
    with pytest.raises(ValueError, match=r"draws from a control picture; expected --control-image FILE, got none"):
        plan(built(pipe, "StableDiffusionAdapterPipeline", **adapter(pipe)), PLAIN)


def test_what_is_not_taken_is_named(pipe):
    with pytest.raises(ValueError, match="expected no --control-image for StableDiffusionPipeline"):
        plan(pipe, PLAIN, Pictures(control_image=PHOTO))
    with pytest.raises(ValueError, match=r"expected no --mask for StableDiffusionImg2ImgPipeline, which takes --image"):
        plan(built(pipe, "StableDiffusionImg2ImgPipeline"), PLAIN, Pictures(PHOTO, MASK))
    edit = built(pipe, "StableDiffusionInstructPix2PixPipeline", unet=make_unet(32, in_channels=8))
    with pytest.raises(ValueError, match="expected no --image-strength"):
        plan(edit, PLAIN, Pictures(PHOTO, strength=0.5))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MarigoldDepthPipeline", "draws from no prompt"),
        ("KandinskyPipeline", "draws from image_embeds, negative_image_embeds, which cannot be given here"),
        ("CycleDiffusionPipeline", "draws from a prompt of the picture it starts from"),
        ("WanVideoToVideoPipeline", "draws from a video"),
    ],
)
def test_what_the_command_cannot_give_is_named(name, words):
    cls = getattr(diffusers, name)
    with pytest.raises(ValueError, match=f"{name} {words}"):
        plan(cls.__new__(cls), PLAIN)


def test_steps_of_which_none_is_left(pipe):
    with pytest.raises(ValueError, match=r"steps times --image-strength of at least 1, got 2 times 0.3"):
        plan(built(pipe, "StableDiffusionImg2ImgPipeline"), PLAIN, Pictures(PHOTO, strength=0.3), steps=2)


def test_a_guidance_that_is_no_number(pipe):
    with pytest.raises(ValueError, match="finite"):
        plan(pipe, PLAIN, guidance=float("nan"))


# What is drawn


@pytest.mark.parametrize(
    ("pictures", "name"),
    [
        (Pictures(), "StableDiffusionPipeline"),
        (Pictures(PHOTO), "StableDiffusionImg2ImgPipeline"),
        (Pictures(PHOTO, MASK), "StableDiffusionInpaintPipeline"),
    ],
)
def test_a_text_to_image_model_draws_from_pictures_too(pipe, pictures, name):
    drawing = plan(pipe, PLAIN, pictures, steps=4)
    assert type(drawing.pipe).__name__ == name
    assert drawing.pipe.unet is pipe.unet
    assert drawing.said.startswith(f"{name}, 4 steps, guidance 7.5")
    images = drawn(drawing, "star", "circle")
    assert len(images) == 2
    assert images[0].tobytes() != images[1].tobytes()


def test_the_mask_is_scaled_to_its_picture_and_long_pictures_to_the_model(pipe):
    pipe = built(pipe, "StableDiffusionInpaintPipeline")
    found = call_arguments(pipe, Pictures(Image.new("RGB", (64, 32)), MASK, strength=0.5))
    assert found["image"].size == found["mask_image"].size == (16, 8)  # the tiny model's own side
    assert found["strength"] == 0.5
    assert call_arguments(pipe, Pictures(Image.new("RGB", (8, 16)), MASK))["image"].size == (8, 16)
    assert call_arguments(pipe, Pictures(PHOTO, MASK), size=32)["mask_image"].size == (32, 32)


def test_pipelines_of_one_model_agree_on_its_patches(pipe):
    """`from_pipe` and AutoPipeline share modules: what is erased stays so, and is not erased twice."""
    patch = get_eraser("uce", cache=False).fit(pipe, Concept("star", anchor="circle"))
    other = diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
    inpaint = diffusers.StableDiffusionInpaintPipeline.from_pipe(other)
    plain = drawn(plan(other, PLAIN, Pictures(PHOTO), steps=4), "star")
    patch.apply(pipe)
    for shared in (other, inpaint, diffusers.AutoPipelineForText2Image.from_pipe(inpaint)):
        assert patch.is_applied(shared)
        with pytest.raises(PatchError, match="already carries"):
            patch.apply(shared)
    erased = drawn(plan(other, PLAIN, Pictures(PHOTO), steps=4), "star")
    assert erased[0].tobytes() != plain[0].tobytes()
    patch.remove(inpaint)
    assert not patch.is_applied(pipe)
    assert drawn(plan(other, PLAIN, Pictures(PHOTO), steps=4), "star")[0].tobytes() == plain[0].tobytes()


# Steps and guidance


def scheduled(pipe: Any, name: str, **config: Any) -> Any:
    pipe.scheduler = getattr(diffusers, name)(num_train_timesteps=100, **config)
    return pipe


@pytest.mark.parametrize(
    ("name", "config", "steps", "guidance"),
    [
        ("DDIMScheduler", {}, 50, 7.5),
        ("EulerDiscreteScheduler", {}, 50, 7.5),
        ("DDIMScheduler", {"timestep_spacing": "trailing"}, 50, 7.5),
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, 4, 0.0),
        ("LCMScheduler", {}, 4, 0.0),
        ("TCDScheduler", {}, 4, 0.0),
    ],
)
def test_the_sampler_is_that_of_the_scheduler(pipe, name, config, steps, guidance):
    found = own_sampler(scheduled(pipe, name, **config))
    assert (found.steps, found.guidance) == (steps, guidance)
    drawing = plan(pipe, PLAIN)
    assert (drawing.profile.steps, drawing.profile.guidance) == (steps, guidance)
    assert f"{steps} steps, guidance {guidance:g} ({found.why})" in drawing.said
    # What is asked for goes before.
    assert plan(pipe, PLAIN, steps=7, guidance=2.0).said == "StableDiffusionPipeline, 7 steps, guidance 2"
    assert plan(pipe, PLAIN, guidance=2.0).profile.steps == steps


def test_a_consistency_model_keeps_the_guidance_that_it_reads(pipe):
    unet = make_unet(32, time_cond_proj_dim=8)
    sampler = own_sampler(scheduled(built(pipe, "StableDiffusionPipeline", unet=unet), "LCMScheduler"))
    assert (sampler.steps, sampler.guidance) == (4, 7.5)
    lcm = built(pipe, "LatentConsistencyModelPipeline", unet=unet, scheduler=diffusers.LCMScheduler())
    assert own_sampler(lcm).steps == 4
    assert len(drawn(plan(lcm, PLAIN), "star")) == 1


def test_a_turbo_model_by_its_name(tmp_path):
    from support.families.all import FAMILIES

    pipe = FAMILIES["zimage"].build(tmp_path)
    assert own_sampler(pipe).steps == 50
    pipe.register_to_config(_name_or_path="someone/Z-Image-Turbo")
    assert (own_sampler(pipe).steps, own_sampler(pipe).guidance) == (8, 0.0)
    pipe.register_to_config(_name_or_path="turbo/other")
    assert own_sampler(pipe).steps == 50


def test_qwen_gets_the_guidance_that_it_uses(tmp_path):
    from support.families.all import FAMILIES

    pipe = FAMILIES["qwenimage"].build(tmp_path)
    drawing = plan(pipe, PLAIN)
    assert "50 steps, guidance 4 (" in drawing.said
    assert (drawing.profile.guidance, drawing.profile.batch) == (None, 1)
    assert dict(drawing.profile.arguments) == {"true_cfg_scale": 4.0, "negative_prompt": " "}
    pictures = [drawn(plan(pipe, replace(PLAIN, size=16), steps=2, guidance=g), "star")[0] for g in (0.0, 4.0)]
    assert pictures[0].tobytes() != pictures[1].tobytes()
    # A guidance of 1 and below is none, and FLUX has its own in `guidance_scale`.
    assert "true_cfg_scale" not in plan(FAMILIES["flux"].build(tmp_path), PLAIN).profile.arguments


def test_flux_without_a_guidance_is_schnell(tmp_path):
    from support.families.all import FAMILIES

    pipe = FAMILIES["flux"].build(tmp_path)
    assert own_sampler(pipe).steps == 28
    pipe.transformer.register_to_config(guidance_embeds=False)
    assert own_sampler(pipe).steps == 4


def test_flux_is_given_as_many_tokens_as_asked_for_and_a_unet_none(pipe, tmp_path, monkeypatch):
    flux = FAMILIES["flux"].build(tmp_path)
    given: list[Any] = []
    encode = flux.encode_prompt
    monkeypatch.setattr(flux, "encode_prompt", lambda **named: given.append(named) or encode(**named))
    settings = {"steps": 1, "guidance": 1.0, "size": FAMILIES["flux"].options["height"]}
    next(generate(flux, [PlainPrompt("a star", 1)], tokens=9, **settings))
    assert given[0]["max_sequence_length"] == 9
    assert plan(flux, replace(PLAIN, tokens=9)).profile.tokens == 9
    assert plan(pipe, replace(PLAIN, tokens=9)).profile.tokens is None
    with pytest.raises(ValueError, match="expected no max_sequence_length, which StableDiffusionPipeline does not"):
        next(generate(pipe, [PlainPrompt("a star", 1)], steps=1, guidance=1.0, tokens=9))
