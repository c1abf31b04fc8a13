"""What comes out of one block of a denoiser on the way to pictures, place by place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.latent_bank import Way, draw_pictures
from erasers.diffusion.supported import check_drawable
from erasers.files.hashing import tensor_hashes
from erasers.models.components import component, submodule
from erasers.models.denoiser_blocks import Half, blocks_with_rows, halves_of, last_block, width_of
from erasers.patch.feature_hooks import Clock, StepFeatures, first_output
from erasers.patch.step_rows import StepPictureRows, StepTextRows

_PUBLISHED = "up_blocks.1.attentions.1"
_TEXT = ":text"
_KINDS: dict[Half | None, type[StepFeatures]] = {
    None: StepFeatures,
    "picture": StepPictureRows,
    "text": StepTextRows,
}

See = Callable[[int, float, torch.Tensor], None]
"""(number of the step, time that the denoiser is told, what the block returned `[n, places, d]`) -> None."""


@dataclass(frozen=True)
class DenoiserBlock:
    """One block of a denoiser that returns a map `[n, d, h, w]`, or rows `[n, places, d]`.

    Args:
        name: Component of the denoiser.
        path: Module path inside of it.
        pipe: A pipeline of a family in `erasers.diffusion.adaptors.table`.
        half: Whose rows, where it returns rows; None: it returns a map of the picture.
    """

    name: str
    path: str
    pipe: Any
    half: Half | None = None

    @property
    def target(self) -> str:
        """`<component>.<module path>`, and `:text` for its rows of the text."""
        return f"{self.hooked}{_TEXT if self.half == 'text' else ''}"

    @property
    def hooked(self) -> str:
        """`<component>.<module path>`."""
        return f"{self.name}.{self.path}"

    @property
    def kind(self) -> str:
        """Of the hook that turns features of the block down."""
        return _KINDS[self.half].kind

    @property
    def module(self) -> nn.Module:
        """The live block."""
        module = submodule(component(self.pipe, self.name), self.path)
        assert module is not None  # noqa: S101 - `find_denoiser_block` has looked
        return module

    @property
    def width(self) -> int:
        """d of its rows."""
        width = width_of(self.module) if self.half else self.module.out_channels
        return int(width)  # type: ignore[arg-type]

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the block's own weights and of the first layer of its denoiser, by parameter name."""
        denoiser = component(self.pipe, self.name)
        first = next(
            (name, child) for name, child in denoiser.named_children() if any(True for _ in child.parameters())
        )
        tensors = {
            f"{self.name}.{path}.{name}": parameter.data
            for path, owner in [(self.path, self.module), first]
            for name, parameter in owner.named_parameters()
        }
        return tensor_hashes(tensors, owner=denoiser)

    def walk(
        self, prompts: Sequence[str], way: Way, generator: torch.Generator, see: See, clip_skip: int | None = None
    ) -> None:
        """Draw one picture of each prompt and show what the block returns on the way, step by step.

        That is in float32 on the CPU; where pictures are guided by asking twice, that of the prompts comes first, then
        that without them.
        """
        told: list[Any] = []

        def look(_: nn.Module, __: Any, output: Any) -> None:
            time = float(torch.as_tensor(told[-1]).flatten()[0])
            see(len(told) - 1, time, self._rows(output).detach().float().cpu())

        denoiser = component(self.pipe, self.name)
        handles = [
            denoiser.register_forward_pre_hook(Clock(self.target, denoiser, told.append), with_kwargs=True),
            self.module.register_forward_hook(look),
        ]
        try:
            asked, empty = conditions(self.pipe, prompts, clip_skip), unprompted(self.pipe)
            draw_pictures(self.pipe, asked, empty, replace(way, batch=len(prompts)), generator)
        finally:
            for handle in handles:
                handle.remove()

    def _rows(self, output: Any) -> torch.Tensor:
        """`[n, places, d]` of what the block returns."""
        if self.half is None:
            return torch.as_tensor(first_output(output)).movedim(1, -1).flatten(1, 2)
        return torch.as_tensor(output[halves_of(self.module)[self.half]] if isinstance(output, tuple) else output)


def find_denoiser_block(pipe: Any, path: str | None = None) -> DenoiserBlock:
    """A block of the denoiser of a pipeline.

    Args:
        pipe: A pipeline of a family in `erasers.diffusion.adaptors.table`.
        path: Module path inside of the denoiser, with `:text` behind it for the tokens of the text that the block
            returns beside those of the picture; None: `up_blocks.1.attentions.1` of a UNet, as published for Stable
            Diffusion 1, else the middle block.

    Raises:
        UnsupportedPipeline: Another pipeline.
        ValueError: No such block, or text that nothing reads.
    """
    check_drawable(pipe)
    name = adaptor_of(pipe).components[0]
    denoiser = component(pipe, name)
    known = blocks_with_rows(denoiser)
    usual = _PUBLISHED if name == "unet" else known[len(known) // 2] if known else ""
    inner, _, behind = (path or usual).partition(":")
    module = submodule(denoiser, inner)
    half: Half = "text" if behind == "text" else "picture"
    if inner and behind in ("", "text") and half in halves_of(module):
        if half == "text" and module is last_block(denoiser):
            raise ValueError(
                f"expected the text of a block of the {name} before the last, which nothing reads, got {path}"
            )
        return DenoiserBlock(name, inner, pipe, half)
    if module is None or behind or getattr(module, "out_channels", None) is None or module is denoiser:
        raise ValueError(_no_block(denoiser, name, path or usual))
    return DenoiserBlock(name, inner, pipe)


def _no_block(denoiser: nn.Module, name: str, path: str) -> str:
    """What an error says where a denoiser has no such block."""
    if name == "unet":
        known = [path for path, child in denoiser.named_modules() if type(child).__name__ == "Transformer2DModel"]
        return f"expected a block of the UNet that returns a map, such as {', '.join(known)}, got {path!r:.80}"
    known = blocks_with_rows(denoiser)
    if not known:
        return f"expected a denoiser whose blocks return tokens of the picture, got {type(denoiser).__name__}"
    texts = [block for block in known if "text" in halves_of(denoiser.get_submodule(block))]
    also = f", or of the text, such as {texts[0]}{_TEXT}" if texts else ""
    return f"expected a block of the {name} that returns tokens, {known[0]} to {known[-1]}{also}, got {path!r:.80}"
