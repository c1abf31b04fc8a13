"""What the call of a pipeline takes beside the prompt, by the class of the pipeline: pictures, a mask, a strength."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from erasers.models.families import UnsupportedPipeline

if TYPE_CHECKING:
    from PIL import Image

# Classes around a denoiser of the table to which text does not come as to the others, with the reason.
_UNFIT = {
    r"^Marigold": "it takes no prompt",
    r"^(AudioLDM|MusicLDM)": "it makes sound",
    r"^IF[A-Z]|^IFPipeline$": "its UNet projects the states of T5 before it reads them",
    r"^(Kandinsky|UnCLIP|StableUnCLIPPipeline$)": "its denoiser reads what a prior makes of the prompt",
    r"^StableDiffusionLatentUpscale": "a summary of the prompt enters beside the time, where nothing is edited",
    r"^AltDiffusion": "its text encoder is not CLIP",
    r"^BlipDiffusion": "a reference picture is mixed into the states of its prompt",
    r"^(QwenImageEdit|ZImageOmni)": "its text encoder reads the picture together with the prompt",
    r"^VisualCloze": "its prompt is a task in pictures",
    r"^QwenImageLayered": "it takes a picture apart, and its prompt is a caption of that",
    r"^(LDMTextToImage|VersatileDiffusion|PaintByExample|StableDiffusionImageVariation)": "it has no CLIP text encoder",
}
# Classes that are fitted, but take more than the command can give.
_UNDRAWN = {
    r"VideoToVideo|^LucyEdit": "a video",
    r"^AnimateDiff.*ControlNet": "a picture for each frame",
    r"ControlNetUnion": "the kind of each control picture (control_mode)",
    r"^LEdits": "an editing prompt and an inverted picture",
    r"^CycleDiffusion": "a prompt of the picture it starts from",
    r"GLIGEN": "phrases with boxes",
    r"AttendAndExcite": "the positions of tokens",
    r"DiffEdit|Pix2PixZero": "an inverted picture",
    r"^ChromaInpaint": "a setting of its transformer (guidance_embeds) that diffusers does not save",
}
_OPTIONAL = re.compile(r"^Flux2(Klein|KleinKV)?Pipeline$|^FluxKontextPipeline$")
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_WORDS = {"image": "a picture", "mask": "a mask", "control_image": "a control picture"}


@dataclass(frozen=True)
class Inputs:
    """What a call takes: input -> name of the argument.

    Args:
        arguments: For each of `image`, `mask` and `control_image` that it takes.
        optional: It draws without them, too.
        strength: It takes how far to go from the picture.
    """

    arguments: Mapping[str, str]
    optional: bool = False
    strength: bool = False


@dataclass(frozen=True)
class Pictures:
    """What a user gives to draw from.

    Args:
        image: What the picture starts from, or is about.
        mask: White where it may change.
        control_image: Edges, depths or poses, as the ControlNet or adapter wants them.
        strength: How far to go from the picture, above 0 and up to 1; None takes the pipeline's own.
    """

    image: Image.Image | None = None
    mask: Image.Image | None = None
    control_image: Image.Image | None = None
    strength: float | None = None

    def given(self) -> dict[str, Image.Image]:
        """The pictures that are there, by input."""
        parts = {"image": self.image, "mask": self.mask, "control_image": self.control_image}
        return {name: picture for name, picture in parts.items() if picture is not None}


def inputs_of(cls: Any) -> Inputs:
    """What the call of a class of pipelines takes."""
    called = inspect.signature(cls.__call__).parameters
    parts = inspect.signature(cls.__init__).parameters
    if {"control_image", "control_mask"} <= called.keys():
        arguments = {"image": "control_image", "mask": "control_mask"}
    elif "control_image" not in called and {"controlnet", "adapter"} & parts.keys():
        arguments = {"control_image": "image"}
    else:
        arguments = {"image": "image", "mask": "mask_image", "control_image": "control_image"}
    arguments = {name: argument for name, argument in arguments.items() if argument in called}
    return Inputs(arguments, bool(_OPTIONAL.search(cls.__name__)), "strength" in called)


def unfit_reason(cls: type) -> str:
    """Why prompts do not come to the denoiser of such a pipeline as its family has it; "" where they do."""
    return _reason(_UNFIT, cls)


def undrawn_reason(cls: Any) -> str:
    """What such a pipeline draws from, besides prompts, pictures and masks; "" where that is nothing."""
    called = inspect.signature(cls.__call__).parameters
    if "prompt" not in called:
        return _reason(_UNDRAWN, cls) or "no prompt"
    known = {"self", "prompt", *inputs_of(cls).arguments.values()}
    plain = [value for name, value in called.items() if name not in known and value.kind not in _VARIADIC]
    return _reason(_UNDRAWN, cls) or ", ".join(value.name for value in plain if value.default is value.empty)


def refuse_unfit(pipe: Any) -> None:
    """Refuse a pipeline to whose denoiser text does not come as to others of its family.

    Raises:
        UnsupportedPipeline: Names the class and the reason.
    """
    if reason := unfit_reason(type(pipe)):
        raise UnsupportedPipeline(f"{type(pipe).__name__} is not supported: {reason}")


def call_arguments(pipe: Any, pictures: Pictures, *, size: int | None = None) -> dict[str, Any]:
    """The arguments of a call that draws from pictures; none for a pipeline that draws from the prompt alone.

    Args:
        pipe: A diffusers pipeline.
        pictures: What there is to draw from; the mask is scaled to its picture.
        size: Side in pixels that they are scaled to; None: those with a side longer than the model's own are scaled
            down to that.

    Raises:
        ValueError: Something that the pipeline needs is missing, or it does not take what is given.
    """
    inputs, given = inputs_of(type(pipe)), pictures.given()
    _check_given(type(pipe), inputs, pictures)
    most = _own_side(pipe)
    arguments: dict[str, Any] = {
        inputs.arguments[name]: _scaled(picture, size, most) for name, picture in given.items()
    }
    if pictures.mask is not None and pictures.image is not None:
        arguments[inputs.arguments["mask"]] = pictures.mask.resize(arguments[inputs.arguments["image"]].size)
    if pictures.strength is not None:
        arguments["strength"] = pictures.strength
    return arguments


def _check_given(cls: type, inputs: Inputs, pictures: Pictures) -> None:
    name, given = cls.__name__, pictures.given()
    if what := undrawn_reason(cls):
        raise ValueError(
            f"{name} draws from {what}, which cannot be given here; fit and apply patches without a report"
        )
    needed = [] if inputs.optional else list(inputs.arguments)
    if [key for key in needed if key not in given]:
        words, keys = " and ".join(_WORDS[key] for key in needed), " ".join(f"{_option(key)} FILE" for key in needed)
        raise ValueError(f"{name} draws from {words}; expected {keys}, got {_list(given)}")
    if other := [key for key in given if key not in inputs.arguments]:
        takes = _list(inputs.arguments)
        raise ValueError(f"expected no {_option(other[0])} for {name}, which takes {takes} beside the prompt")
    if pictures.strength is not None and not inputs.strength:
        raise ValueError(f"expected no --image-strength for {name}, which takes none")


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _list(keys: Mapping[str, Any]) -> str:
    return ", ".join(_option(key) for key in keys) or "none of them"


def _own_side(pipe: Any) -> int | None:
    """Side in pixels of the pictures that a model was made for, where the pipeline knows it."""
    side = getattr(getattr(getattr(pipe, "unet", None), "config", None), "sample_size", None)
    side = getattr(pipe, "default_sample_size", None) if side is None else side
    scale = getattr(pipe, "vae_scale_factor", None)
    return None if side is None or scale is None else int(scale) * (side if isinstance(side, int) else max(side))


def _scaled(picture: Image.Image, size: int | None, most: int | None) -> Image.Image:
    if size is not None:
        return picture.resize((size, size))
    longest = max(picture.size)
    if most is None or longest <= most:
        return picture
    width, height = (max(8, side * most // longest // 8 * 8) for side in picture.size)
    return picture.resize((width, height))


def _reason(table: Mapping[str, str], cls: type) -> str:
    names = [parent.__name__ for parent in cls.__mro__]
    return next((why for pattern, why in table.items() if any(re.search(pattern, name) for name in names)), "")
