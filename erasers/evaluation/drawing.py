"""How the pictures of a report, or of `erase generate`, are drawn: the pipeline, its arguments, steps and guidance."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import PurePath
from typing import Any

import torch
from PIL import Image

from erasers.asks import Ask
from erasers.evaluation.profile.profile import Profile
from erasers.evaluation.refusal.refusal import refuse_minors
from erasers.models.calls import check_tokens
from erasers.models.inputs import Pictures, call_arguments, inputs_of

_FEW, _SOME = 4, 8
_TRUE = "true_cfg_scale"
_TOKENS = "max_sequence_length"
_EULER = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")


@dataclass(frozen=True)
class Drawing:
    """All that a call gets beside prompts and noise.

    Args:
        pipe: The pipeline that draws; of another class than the one loaded where pictures ask for that, and then it
            shares its modules.
        profile: With the steps, the guidance and the size that are used.
        said: The same in words.
    """

    pipe: Any
    profile: Profile
    said: str


@dataclass(frozen=True)
class Sampler:
    """Steps and guidance scale, None where a call takes none, and why these where they were not asked for."""

    steps: int | None
    guidance: float | None
    why: str = "its defaults"


def plan(
    pipe: Any,
    profile: Profile,
    pictures: Pictures | None = None,
    *,
    steps: int | None = None,
    guidance: float | None = None,
) -> Drawing:
    """Settle how a pipeline draws, before any work.

    Args:
        pipe: A diffusers pipeline.
        profile: Its size is that of the pictures; its steps and guidance hold where they are not None.
        pictures: What there is to draw from.
        steps: Denoising steps in place of those of the profile, or of the pipeline's own.
        guidance: Guidance scale likewise.

    Raises:
        ValueError: Something is missing or not taken, or so few steps that none is left.
    """
    pictures = pictures or Pictures()
    pipe = _for_pictures(pipe, pictures)
    arguments = call_arguments(pipe, pictures, size=profile.size)
    called = inspect.signature(type(pipe).__call__).parameters
    own = own_sampler(pipe)
    scale = _scale(pipe)
    if guidance is not None and scale not in called:
        raise ValueError(f"expected no --guidance for {type(pipe).__name__}, which takes none")
    if guidance is not None and not abs(guidance) < inf:
        raise ValueError(f"expected --guidance as a finite number, got {guidance}")
    steps, guidance = steps or profile.steps, profile.guidance if guidance is None else guidance
    why = own.why if steps is None or guidance is None else ""
    sampler = Sampler(steps or own.steps, own.guidance if guidance is None else guidance, why)
    strength = arguments.get("strength", called["strength"].default if inputs_of(type(pipe)).strength else None)
    if strength is not None and sampler.steps is not None and int(sampler.steps * strength) < 1:
        raise ValueError(f"expected steps times --image-strength of at least 1, got {sampler.steps} times {strength}")
    if scale == _TRUE:
        # Without a negative prompt such a pipeline draws without guidance.
        arguments |= {_TRUE: sampler.guidance, "negative_prompt": " "}
    settled = replace(
        profile,
        steps=sampler.steps,
        guidance=None if scale == _TRUE else sampler.guidance,
        batch=1 if arguments else profile.batch,
        size=profile.size if "height" in called else None,
        tokens=profile.tokens if _TOKENS in called else None,
        arguments=arguments,
    )
    return Drawing(pipe, settled, _words(type(pipe), sampler, strength))


def own_sampler(pipe: Any) -> Sampler:
    """The steps and the guidance that suit a pipeline: few and none where it is distilled, else its defaults."""
    called = inspect.signature(type(pipe).__call__).parameters
    steps, guidance = (getattr(called.get(name), "default", None) for name in ("num_inference_steps", _scale(pipe)))
    default = Sampler(steps, guidance)
    name = PurePath(str(pipe.config.get("_name_or_path"))).name
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    reads = getattr(denoiser, "config", {})
    kind, spacing = type(pipe.scheduler).__name__, pipe.scheduler.config.get("timestep_spacing")
    if steps is None or steps <= _SOME:
        return default
    if reads.get("time_cond_proj_dim"):
        return Sampler(_FEW, guidance, "distilled: its UNet reads the guidance")
    if kind in ("LCMScheduler", "TCDScheduler"):
        return Sampler(_FEW, _none(guidance), f"{kind} draws in few steps")
    if pipe.config.get("is_distilled"):
        return Sampler(_FEW, _none(guidance), "distilled, as its configuration says")
    if kind in _EULER and spacing == "trailing" and hasattr(pipe, "unet"):
        return Sampler(_FEW, _none(guidance), f"{kind} with trailing steps, as Turbo and Lightning models have it")
    if type(denoiser).__name__ == "FluxTransformer2DModel" and not reads.get("guidance_embeds"):
        return Sampler(_FEW, guidance, "distilled (schnell): it reads no guidance")
    if "turbo" in name.lower() and not reads.get("guidance_embeds"):
        return Sampler(_SOME, _none(guidance), "a Turbo model by its name")
    return default


def _scale(pipe: Any) -> str:
    """The argument that holds the guidance scale: some have one for distilled guidance, and one that they use."""
    true = inspect.signature(type(pipe).__call__).parameters.get(_TRUE)
    return _TRUE if true is not None and true.default > 1 else "guidance_scale"


def _none(guidance: float | None) -> float | None:
    """The scale at which a pipeline draws without guidance: some draw so up to 1, some only at 0."""
    return None if guidance is None else 0.0


def _for_pictures(pipe: Any, pictures: Pictures) -> Any:
    """The pipeline, or the one around the same modules that draws from the pictures given."""
    if pictures.image is None or inputs_of(type(pipe)).arguments:
        return pipe
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

    auto = AutoPipelineForImage2Image if pictures.mask is None else AutoPipelineForInpainting
    try:
        return auto.from_pipe(pipe)
    except ValueError:
        return pipe  # diffusers has no such class for this family: the check of the arguments says so


def _words(cls: type, sampler: Sampler, strength: float | None) -> str:
    steps = [] if sampler.steps is None else [f"{sampler.steps} steps"]
    guidance = [] if sampler.guidance is None else [f"guidance {sampler.guidance:g}"]
    strengths = [] if strength is None else [f"strength {strength:g}"]
    why = f" ({sampler.why})" if sampler.why else ""
    return ", ".join([cls.__name__, *steps, *guidance, *strengths]) + why


def generate(
    pipe: Any,
    asks: Sequence[Ask],
    *,
    steps: int | None,
    guidance: float | None,
    batch: int = 1,
    size: int | None = None,
    tokens: int | None = None,
    latents: torch.Tensor | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Iterator[list[Image.Image]]:
    """Pictures in batches, in order. Each has noise of its own from a CPU generator, so batches change nothing.

    Args:
        pipe: A diffusers pipeline; of a video the middle frame counts.
        asks: Prompts with seeds.
        steps: Denoising steps; None takes the pipeline's own default.
        guidance: Guidance scale; likewise.
        batch: Pictures at a time.
        size: Side of the pictures in pixels; None takes the model's own.
        tokens: Tokens that a prompt is padded or cut to; None takes the pipeline's own default.
        latents: Noise `[1, c, h, w]` in place of that of the seeds.
        arguments: Of the call, beside these: what a pipeline draws from besides prompts.

    Raises:
        ValueError: A prompt that combines sexual content and minors, or tokens for a pipeline that does not take their
            number; nothing has been drawn then.
    """
    for ask in asks:
        refuse_minors(ask.text)
    settings: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance, "height": size, "width": size}
    settings |= {"latents": latents, _TOKENS: tokens}
    check_tokens(pipe, tokens)
    settings = {key: value for key, value in settings.items() if value is not None} | dict(arguments or {})
    with _no_bars(pipe):
        for start in range(0, len(asks), batch):
            chunk = asks[start : start + batch]
            noise = [torch.Generator("cpu").manual_seed(ask.seed) for ask in chunk]
            with _seeded(chunk[0].seed if arguments else None):
                output = pipe(prompt=[ask.text for ask in chunk], generator=noise, output_type="pil", **settings)
            videos = getattr(output, "frames", None)
            yield [frames[len(frames) // 2] for frames in videos] if videos is not None else list(output.images)


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Inside, torch draws from that seed: some pipelines encode a picture with noise of no generator."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _no_bars(pipe: Any) -> Iterator[None]:
    before = dict(getattr(pipe, "_progress_bar_config", None) or {})
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)
