"""The pipelines that trained erasers and gradient attacks know how to call."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from erasers.diffusion.adaptors.adaptor import Adaptor
from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.noise import flows
from erasers.models.encoder_blocks import is_clip
from erasers.models.families import UnsupportedPipeline
from erasers.models.feeding import feeds_of
from erasers.models.inputs import refuse_unfit
from erasers.models.ports import refuse_wrapped


def check_readable(pipe: Any) -> None:
    """Refuse a pipeline of whose text encoders nobody here knows what its denoiser reads.

    Raises:
        UnsupportedPipeline: Lists the families, or names the reason.
        ValueError: A prediction or a noise schedule that is not supported, or no text encoder.
    """
    _check_parts(pipe, _family_of(pipe))


def check_family(pipe: Any, families: Sequence[type[Adaptor]], why: str) -> None:
    """Refuse what `check_readable` does, and pipelines of other families.

    Args:
        pipe: A diffusers pipeline.
        families: Those that will do.
        why: For what, which follows them in the message.

    Raises:
        UnsupportedPipeline: Lists the families, or names the reason.
        ValueError: As `check_readable`.
    """
    check_readable(pipe)
    if not isinstance(adaptor_of(pipe), tuple(families)):
        titles, denoisers = (
            " or ".join(getattr(family, name) for family in families) for name in ("title", "denoiser")
        )
        raise UnsupportedPipeline(f"expected a pipeline of {titles} ({denoisers}) {why}, got {type(pipe).__name__}")


def check_drawable(pipe: Any) -> None:
    """Refuse what `check_readable` does, and a denoiser that draws from more than a prompt.

    Raises:
        UnsupportedPipeline: Lists the families, or names the reason.
        ValueError: As `check_readable`.
    """
    adaptor = _family_of(pipe)
    adaptor.check(pipe)
    _check_parts(pipe, adaptor)


def _family_of(pipe: Any) -> Adaptor:
    refuse_wrapped(pipe)
    adaptor = adaptor_of(pipe)
    refuse_unfit(pipe)
    return adaptor


def _check_parts(pipe: Any, adaptor: Adaptor) -> None:
    """Refuse a pipeline without the text encoders and the kind of scheduler that its family needs."""
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
