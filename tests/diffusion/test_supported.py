"""Pipelines that gradient attacks refuse."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

from erasers.diffusion.supported import check_supported


def test_other_pipelines_are_refused(pipes: Any) -> None:
    check_supported(pipes("sd2"))
    with pytest.raises(TypeError, match="expected a Stable Diffusion 1 or 2 pipeline .* got StableDiffusionXLPipeline"):
        check_supported(pipes("sdxl"))
    with pytest.raises(TypeError, match="got Linear"):
        check_supported(nn.Linear(1, 1))


@pytest.mark.parametrize("scheduler", [DDIMScheduler(prediction_type="sample"), FlowMatchEulerDiscreteScheduler()])
def test_other_schedulers_are_refused(pipe: Any, scheduler: Any) -> None:
    pipe.scheduler = scheduler
    with pytest.raises(ValueError, match=f"expected a scheduler with alphas_cumprod .* {type(scheduler).__name__}"):
        check_supported(pipe)
