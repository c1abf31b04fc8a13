"""The pipelines that trained erasers and gradient attacks know how to call."""

from __future__ import annotations

import inspect
from typing import Any

from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.noise import flows
from erasers.models.encoder_blocks import is_clip
from erasers.models.families import UnsupportedPipeline
from erasers.models.feeding import feeds_of
from erasers.models.inputs import refuse_unfit
from erasers.models.ports import refuse_wrapped


def check_unet(pipe: Any) -> None:
    """Refuse what is not Stable Diffusion 1, 2 or XL.

    Raises:
        UnsupportedPipeline: Names what is supported.
        ValueError: A prediction or a noise schedule that is not.
    """
    refuse_wrapped(pipe)
    unet = _uncompiled(getattr(pipe, "unet", None))
    kind, added = type(unet).__name__, getattr(getattr(unet, "config", None), "addition_embed_type", None)
    if kind != "UNet2DConditionModel" or added not in (None, "text_time") or not hasattr(pipe, "text_encoder"):
        raise UnsupportedPipeline(
            "expected a Stable Diffusion 1, 2 or XL pipeline (UNet2DConditionModel with CLIP text encoders), got "
            f"{type(pipe).__name__}"
        )
    if getattr(pipe, "text_encoder", None) is None and getattr(pipe, "text_encoder_2", None) is None:
        raise ValueError(f"expected {type(pipe).__name__} with a text encoder, got None; load the pipeline with it")
    _refuse_other_predictions(pipe)


def check_drawable(pipe: Any) -> None:
    """Refuse a pipeline whose denoiser nobody here knows how to call, or one that draws from more than a prompt.

    Raises:
        UnsupportedPipeline: Lists the families, or names the reason.
        ValueError: A prediction or a noise schedule that is not supported, or no text encoder.
    """
    refuse_wrapped(pipe)
    adaptor = adaptor_of(pipe)
    refuse_unfit(pipe)
    adaptor.check(pipe)
    absent = [name for name in adaptor.encoders if getattr(pipe, name, None) is None]
    needed = [name for name in absent if name not in adaptor.optional]
    if needed or len(absent) == len(adaptor.encoders):
        name = "text encoder" if len(absent) == len(adaptor.encoders) else needed[0]
        raise ValueError(f"expected {type(pipe).__name__} with a {name}, got None; load the pipeline with it")
    if not adaptor.flow:
        _refuse_other_predictions(pipe)
    elif not flows(pipe):
        raise ValueError(
            f"expected a flow-matching scheduler for {adaptor.title}, got {type(pipe.scheduler).__name__}; load the "
            "scheduler that the model comes with"
        )


def check_clip_skip(pipe: Any, clip_skip: int | None) -> None:
    """Refuse to leave out layers that a text encoder does not have, and pipelines that leave none out.

    Raises:
        ValueError: Says which.
    """
    if clip_skip is None:
        return
    if "clip_skip" not in inspect.signature(pipe.encode_prompt).parameters:
        raise ValueError(f"expected no clip_skip, which {type(pipe).__name__} does not take")
    for name, feed in feeds_of(pipe).items():
        if is_clip(getattr(pipe, name)) and feed.tokens is not None and feed.tokens < clip_skip:
            raise ValueError(
                f"expected clip_skip of at most the {feed.tokens} layers that are read of the {name}, got {clip_skip}"
            )


def _refuse_other_predictions(pipe: Any) -> None:
    """Refuse a scheduler without a noise schedule of alphas, and predictions but noise and velocity.

    Raises:
        ValueError: Names the scheduler and what is predicted.
    """
    prediction = pipe.scheduler.config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction") or not hasattr(pipe.scheduler, "alphas_cumprod"):
        raise ValueError(
            "expected a scheduler with alphas_cumprod that predicts epsilon or v_prediction, got "
            f"{type(pipe.scheduler).__name__} that predicts {prediction}"
        )


def _uncompiled(module: Any) -> Any:
    """What `torch.compile` was given."""
    return getattr(module, "_orig_mod", module)
