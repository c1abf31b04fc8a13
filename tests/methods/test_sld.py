"""SLD: the pictures are those of diffusers' own pipeline, and what is not guided stays bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipelineSafe
from support.families.all import FAMILIES
from support.families.base import draw as draw_family
from support.run_time import UNGUIDED, check_compiled, check_lives_on, difference
from support.tiny import draw
from support.trained import family_pipe

from erasers import Concept, PatchError, UnsupportedPipeline, get_eraser
from erasers.methods.sld import SLD
from erasers.patch.safe_guidance import SafeGuidance, momentum, pull

STAR = Concept("star", anchor="circle")
LONG: dict[str, Any] = {"num_inference_steps": 10, "output_type": "np"}


def published(pipe: Any, prompts: list[str], **settings: float) -> torch.Tensor:
    """What diffusers' own pipeline draws."""
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor")
    safe = StableDiffusionPipelineSafe(
        **{name: getattr(pipe, name) for name in names},
        requires_safety_checker=False,
    )
    safe.safety_concept = "star, pentagram"
    safe.set_progress_bar_config(disable=True)
    return torch.as_tensor(draw(safe, prompts, **LONG, **settings))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        (
            "sld-weak",
            {"warmup_steps": 3, "guidance_scale": 20, "threshold": 0.0, "momentum_scale": 0.0, "mom_beta": 0.0},
        ),
        ("sld", {"warmup_steps": 2, "guidance_scale": 1000, "threshold": 0.01, "momentum_scale": 0.3, "mom_beta": 0.4}),
        (
            "sld-max",
            {"warmup_steps": 0, "guidance_scale": 5000, "threshold": 1.0, "momentum_scale": 0.5, "mom_beta": 0.7},
        ),
    ],
)
def test_pictures_are_those_of_the_published_pipeline(pipe, preset, settings):
    prompts = ["a picture of star", "moon"]
    expected = published(pipe, prompts, **{f"sld_{name}": value for name, value in settings.items()})
    plain = torch.as_tensor(draw(pipe, prompts, **LONG))
    concept = Concept("star", aliases=["pentagram"], anchor="circle")
    with get_eraser(preset).fit(pipe, concept).applied(pipe):
        found, again = (torch.as_tensor(draw(pipe, prompts, **LONG)) for _ in range(2))
    assert difference(expected, plain) > 1e-3
    assert difference(found, expected) < 1e-4
    assert torch.equal(found, again)


def test_only_what_is_guided_by_asking_twice_changes(pipe, tmp_path):
    patch = get_eraser("sld-max").fit(pipe, STAR)
    plain, guided = draw(pipe, ["moon", "star"], **UNGUIDED), draw(pipe, "moon")
    with patch.applied(pipe):
        assert torch.equal(draw(pipe, ["moon", "star"], **UNGUIDED), plain)
        changed = draw(pipe, "moon")
        both = draw(pipe, ["moon", "star"], num_images_per_prompt=2)
        assert difference(both[:1], changed) < 1e-4
        # An interrupted run leaves nothing behind.
        with pytest.raises(RuntimeError, match="stop"):
            draw(pipe, "star", callback_on_step_end=_stop)
        assert torch.equal(draw(pipe, "moon"), changed)
    assert difference(changed, guided) > 1e-4
    with patch.applied(pipe, strength=0):
        assert torch.equal(draw(pipe, "moon"), guided)
    # What is clipped at a small difference multiplies what rounding does.
    check_lives_on(pipe, patch, "star", tmp_path, 2e-3)


def _stop(*_: Any) -> dict[str, Any]:
    raise RuntimeError("stop")


@pytest.mark.full
def test_compiled(pipe):
    check_compiled(pipe, get_eraser("sld-max").fit(pipe, STAR), "star")


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_families_with_pooled_text(family, tmp_path):
    pipe, options = family_pipe(family, tmp_path), FAMILIES[family].options | {"guidance_scale": 4.0}
    eraser = get_eraser("sld-max", max_sequence_length=options.get("max_sequence_length"))
    plain = draw_family(pipe, "star", options)
    patch = eraser.fit(pipe, STAR)
    assert "pooled" in patch.hooks[0].parts
    with patch.applied(pipe):
        assert difference(draw_family(pipe, "star", options), plain) > 1e-4
    assert torch.equal(draw_family(pipe, "star", options), plain)


def test_the_pull_goes_to_the_concept_where_a_picture_is_near_and_momentum_adds_up():
    parts = dict(zip(("scale", "threshold", "keep", "pace"), torch.tensor([[2.0], [0.1], [0.5], [0.75]]), strict=True))
    asked, away, concept = torch.tensor([0.0, 0.5, 5.0, -9.0]), torch.zeros(4), torch.tensor([0.25, 0.25, 0.25, 1.0])
    own = pull(asked, away, concept, parts)
    torch.testing.assert_close(own, torch.tensor([0.5 * 0.25, 0.0, 0.0, 1.0]))
    whole, pace = momentum(own, torch.full((4,), 0.2), parts)
    torch.testing.assert_close(whole, own + 0.1)
    torch.testing.assert_close(pace, 0.15 + 0.25 * whole)


def test_other_families_are_refused(tmp_path):
    with pytest.raises(UnsupportedPipeline, match="guide by asking for both"):
        SLD().fit(family_pipe("flux", tmp_path), STAR)


GOOD = {"states": torch.ones(2, 3)} | dict.fromkeys(("first", "scale", "threshold", "keep", "pace"), torch.ones(1))


def test_parts_that_do_not_fit_are_refused(pipe):
    for change in ({"states": torch.ones(3)}, {"scale": torch.ones(2)}, {"pooled": torch.ones(1, 2)}):
        with pytest.raises(PatchError, match="expected the parts states"):
            SafeGuidance("unet", GOOD | change)
    with pytest.raises(PatchError, match="on a denoiser"):
        SafeGuidance("unet.mid_block", GOOD)
    with pytest.raises(PatchError, match="unet reads rows of 32, the hook needs 3"):
        SafeGuidance("unet", GOOD).check(pipe.unet)


@pytest.mark.parametrize(("option", "words"), [({"beta": 1.5}, "beta"), ({"warm_up": -0.1}, "warm_up")])
def test_bad_options_are_refused(option, words):
    with pytest.raises(ValueError, match=f"expected {words}"):
        SLD(**option)
