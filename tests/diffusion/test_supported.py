"""Pipelines that gradient attacks refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from support.families.all import FAMILIES
from support.families.variants import build as build_variant
from torch import nn

from erasers import UnsupportedPipeline
from erasers.diffusion.supported import check_drawable


def test_other_pipelines_are_refused(pipes: Any) -> None:
    for family in ("sd2", "sdxl"):
        check_drawable(pipes(family))
    with pytest.raises(TypeError, match="got Linear"):
        check_drawable(nn.Linear(1, 1))


@pytest.mark.parametrize("scheduler", [DDIMScheduler(prediction_type="sample"), FlowMatchEulerDiscreteScheduler()])
def test_other_schedulers_are_refused(pipe: Any, scheduler: Any) -> None:
    pipe.scheduler = scheduler
    with pytest.raises(ValueError, match=f"expected a scheduler with alphas_cumprod .* {type(scheduler).__name__}"):
        check_drawable(pipe)


def lacks(name: str) -> Callable[[Any], None]:
    return lambda pipe: setattr(pipe, name, None)


def follows(scheduler: Any) -> Callable[[Any], None]:
    return lambda pipe: setattr(pipe, "scheduler", scheduler)


REFUSED: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "control": ("CogView4ControlPipeline", str, "reads 8 channels: a picture beside them"),
    "picture": ("WanImageToVideoPipeline", str, "reads 12 channels: a picture beside them"),
    "fill": ("FluxFillPipeline", str, "reads 48 channels: a picture beside them"),
    "distilled": ("SanaSprintPipeline", str, "reads the guidance scale, too: it is distilled"),
    "half": ("wan", lambda pipe: pipe.register_to_config(boundary_ratio=0.9), "with its transformer_2, got None"),
    "encoder": ("flux", lacks("text_encoder_2"), "expected FluxPipeline with a text_encoder_2, got None"),
    "no encoder": ("qwenimage", lacks("text_encoder"), "expected QwenImagePipeline with a text encoder, got None"),
    "alphas": ("zimage", follows(DDIMScheduler()), "expected a flow-matching scheduler for Z-Image, got DDIM"),
    "flow": ("pixart", follows(FlowMatchEulerDiscreteScheduler()), "expected a scheduler with alphas_cumprod"),
    "family": ("hunyuandit", str, "expected a pipeline that can be trained and attacked .* got HunyuanDiTPipeline"),
}
"""What is wrong -> the pipeline, how it becomes so, what is said."""


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_pipeline_lacks_is_said(what: str, tmp_path: Path) -> None:
    name, spoil, words = REFUSED[what]
    pipe = FAMILIES[name].build(tmp_path) if name in FAMILIES else build_variant(name, tmp_path)
    spoil(pipe)
    with pytest.raises((UnsupportedPipeline, ValueError), match=words):
        check_drawable(pipe)


@pytest.mark.parametrize("name", ["sd3", "wan", "pixart", "Flux2KleinPipeline", "QwenImageImg2ImgPipeline"])
def test_what_draws_from_prompts_is_taken(name: str, tmp_path: Path) -> None:
    pipe = FAMILIES[name].build(tmp_path) if name in FAMILIES else build_variant(name, tmp_path)
    check_drawable(pipe)
    if name == "sd3":
        pipe.text_encoder_3 = None
        check_drawable(pipe)
