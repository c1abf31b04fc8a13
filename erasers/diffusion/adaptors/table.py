"""Which adaptor goes with a pipeline."""

from __future__ import annotations

from typing import Any

from torch import nn

from erasers.diffusion.adaptors.adaptor import Adaptor, module_of
from erasers.diffusion.adaptors.auraflow import AuraFlow
from erasers.diffusion.adaptors.chroma import Chroma
from erasers.diffusion.adaptors.cogview4 import CogView4
from erasers.diffusion.adaptors.flux import Flux
from erasers.diffusion.adaptors.flux2 import Flux2
from erasers.diffusion.adaptors.lumina2 import Lumina2
from erasers.diffusion.adaptors.pixart import PixArt
from erasers.diffusion.adaptors.qwen_image import QwenImage
from erasers.diffusion.adaptors.sana import Sana
from erasers.diffusion.adaptors.sd3 import SD3
from erasers.diffusion.adaptors.unet import UNet
from erasers.diffusion.adaptors.wan import Wan
from erasers.diffusion.adaptors.z_image import ZImage
from erasers.models.families import UnsupportedPipeline

ADAPTORS: tuple[Adaptor, ...] = (
    UNet(),
    SD3(),
    Flux(),
    Flux2(),
    Chroma(),
    QwenImage(),
    ZImage(),
    PixArt(),
    Sana(),
    Wan(),
    Lumina2(),
    CogView4(),
    AuraFlow(),
)


def adaptor_of(pipe: Any) -> Adaptor:
    """How the denoiser of a pipeline is called.

    Raises:
        UnsupportedPipeline: Lists the families that can be.
    """
    for adaptor in ADAPTORS:
        names = {cls.__name__ for name in adaptor.components for cls in type(module_of(pipe, name)).__mro__}
        if adaptor.denoiser in names:
            return adaptor
    kinds = "; ".join(f"{adaptor.title}: {adaptor.denoiser}" for adaptor in ADAPTORS)
    raise UnsupportedPipeline(
        f"expected a pipeline that can be trained and attacked ({kinds}), got {type(pipe).__name__}"
    )


def denoisers_of(pipe: Any) -> dict[str, nn.Module]:
    """The denoisers of a pipeline by the name of their component, the one of high noise first."""
    modules = {name: module_of(pipe, name) for name in adaptor_of(pipe).components}
    return {name: module for name, module in modules.items() if isinstance(module, nn.Module)}


def denoiser_of(pipe: Any) -> Any:
    """The denoiser of a pipeline; of two the one of high noise."""
    return next(iter(denoisers_of(pipe).values()))


def encoders_of(pipe: Any) -> dict[str, nn.Module]:
    """The text encoders that the denoiser reads, those that the pipeline has, by the name of their component."""
    modules = {name: module_of(pipe, name) for name in adaptor_of(pipe).encoders}
    return {name: module for name, module in modules.items() if isinstance(module, nn.Module)}
