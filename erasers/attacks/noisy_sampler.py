"""A pipeline that adds fresh noise in every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from erasers.attacks.noisy_ddim import NoisyDDIM
from erasers.attacks.noisy_flow import noisy_flow
from erasers.attacks.step_noise import StepNoise
from erasers.diffusion.noise import flows


@contextmanager
def noisy_sampler(pipe: Any, noises: Sequence[StepNoise]) -> Iterator[None]:
    """Inside, `pipe` draws with fresh noise: by DDIM whatever sampler it has, or along its flow.

    Args:
        pipe: The pipeline.
        noises: Of the pictures, one after the other over all calls; after the last comes the first again.
    """
    before = pipe.scheduler
    scheduler = noisy_flow(before) if flows(pipe) else NoisyDDIM.from_config(before.config)
    pipe.scheduler = scheduler.with_noise(noises)
    try:
        yield
    finally:
        pipe.scheduler = before
