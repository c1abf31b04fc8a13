"""What comes out of one block of a UNet on the way to pictures, place by place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.latent_bank import Way, draw_pictures
from erasers.diffusion.supported import check_drawable
from erasers.files.hashing import tensor_hashes
from erasers.models.components import component, submodule
from erasers.patch.feature_hooks import first_output

_PUBLISHED = "up_blocks.1.attentions.1"


@dataclass(frozen=True)
class DenoiserBlock:
    """One block of a UNet that returns a map `[n, d, h, w]`.

    Args:
        path: Module path inside of the UNet.
        pipe: A Stable Diffusion 1, 2 or XL pipeline.
    """

    path: str
    pipe: Any

    name = "unet"

    @property
    def target(self) -> str:
        """`unet.<module path>`."""
        return f"{self.name}.{self.path}"

    @property
    def module(self) -> nn.Module:
        """The live block."""
        module = submodule(component(self.pipe, self.name), self.path)
        assert module is not None  # noqa: S101 - `find_denoiser_block` has looked
        return module

    @property
    def width(self) -> int:
        """d of its rows."""
        return int(self.module.out_channels)  # type: ignore[arg-type]

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the block's own weights and of the first layer of its UNet, by parameter name."""
        unet = component(self.pipe, self.name)
        parts = [(self.path, self.module), ("conv_in", submodule(unet, "conv_in"))]
        tensors = {
            f"{self.name}.{path}.{name}": parameter.data
            for path, owner in parts
            if owner is not None
            for name, parameter in owner.named_parameters()
        }
        return tensor_hashes(tensors, owner=unet)

    def walk(
        self, prompts: Sequence[str], way: Way, generator: torch.Generator, clip_skip: int | None = None
    ) -> torch.Tensor:
        """What the block returns while one picture of each prompt is drawn.

        Returns:
            `[steps, 2 prompts, h w, d]` in float32 on the CPU: with the prompts, then without them, for guidance.
        """
        met: list[torch.Tensor] = []

        def look(_: nn.Module, __: Any, output: Any) -> None:
            met.append(first_output(output).detach().float().cpu().movedim(1, -1).flatten(1, 2))

        handle = self.module.register_forward_hook(look)
        try:
            asked, empty = conditions(self.pipe, prompts, clip_skip), unprompted(self.pipe)
            draw_pictures(self.pipe, asked, empty, replace(way, batch=len(prompts)), generator)
        finally:
            handle.remove()
        return torch.stack(met)


def find_denoiser_block(pipe: Any, path: str | None = None) -> DenoiserBlock:
    """A block of the UNet of a pipeline.

    Args:
        pipe: A Stable Diffusion 1, 2 or XL pipeline.
        path: Module path inside of the UNet; None: `up_blocks.1.attentions.1`, as published for Stable Diffusion 1.

    Raises:
        UnsupportedPipeline: Another pipeline.
        ValueError: No such block.
    """
    check_drawable(pipe)
    unet, path = component(pipe, "unet"), path or _PUBLISHED
    module = submodule(unet, path)
    if module is None or getattr(module, "out_channels", None) is None:
        known = [name for name, child in unet.named_modules() if type(child).__name__ == "Transformer2DModel"]
        raise ValueError(
            f"expected a block of the UNet that returns a map, such as {', '.join(known)}, got {path!r:.80}"
        )
    return DenoiserBlock(path, pipe)
