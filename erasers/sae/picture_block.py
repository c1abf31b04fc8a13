"""What comes out of one module of a vision-language model as it sees pictures, place by place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn

from erasers.files.hashing import tensor_hashes
from erasers.models.components import submodule
from erasers.models.model_pipeline import COMPONENT, ModelPipeline
from erasers.patch.feature_hooks import first_output
from erasers.sae.rows import Rows, turn

_PROJECTOR = "model.multi_modal_projector"
_TOWER = "model.vision_tower."


@dataclass(frozen=True)
class PictureBlock:
    """A module of the vision tower that returns `[pictures, T, d]`, or the projector behind it.

    Args:
        path: Module path inside of the model.
        pipe: A LLaVA.
    """

    path: str
    pipe: ModelPipeline

    name = COMPONENT

    @property
    def target(self) -> str:
        """`model.<module path>`."""
        return f"{self.name}.{self.path}"

    @property
    def module(self) -> nn.Module:
        """The live module."""
        module: nn.Module = self.pipe.model.get_submodule(self.path)
        return module

    @property
    def first(self) -> int:
        """The first row that counts: 1 in a tower with a row of no place, which the projector never sees."""
        left_out = self.pipe.model.config.vision_feature_select_strategy == "default"
        return int(left_out and self.path.startswith(_TOWER))

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the weights that make its output, by parameter name: those of the tower, and its own."""
        tensors = {
            f"{self.name}.{path}": parameter.data
            for path, parameter in self.pipe.model.named_parameters()
            if path.startswith((_TOWER, f"{self.path}."))
        }
        return tensor_hashes(tensors, owner=self.pipe.model)

    def counted(self, outputs: torch.Tensor) -> torch.Tensor:
        """Outputs `[pictures, T, d]` without a first row that is of no place."""
        return outputs[:, self.first :]

    @torch.no_grad()
    def batches(self, pictures: Sequence[Image.Image], size: int) -> Iterator[torch.Tensor]:
        """What the module makes of pictures, so many at a time: `[pictures, T, d]` in float32 on the CPU."""
        for start in range(0, len(pictures), size):
            yield self._run(pictures[start : start + size])

    def _run(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        outputs: list[torch.Tensor] = []

        def look(_: nn.Module, __: Any, output: Any) -> None:
            outputs.append(first_output(output).detach().float().cpu())

        model = self.pipe.model
        pixels = self.pipe.processor.image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        handle = self.module.register_forward_hook(look)
        try:
            model.get_image_features(pixel_values=pixels.to(model.device, model.dtype))
        finally:
            handle.remove()
        return outputs[0]


def find_picture_block(pipe: ModelPipeline, path: str = _PROJECTOR) -> PictureBlock:
    """A module of a LLaVA, the projector unless another is named.

    Raises:
        ValueError: The model has no such module, or it is of neither the vision tower nor the projector.
    """
    known = path == _PROJECTOR or path.startswith(_TOWER)
    if not known or submodule(pipe.model, path) is None:
        raise ValueError(
            f"expected {_PROJECTOR} or a module below {_TOWER.removesuffix('.')} of {type(pipe.model).__name__}, got "
            f"{path!r:.80}"
        )
    return PictureBlock(path, pipe)


@dataclass
class PictureRows(Rows):
    """Places of pictures behind such a module.

    Args:
        pictures: As many as there are prompts, which are their names.
    """

    block: PictureBlock
    pictures: Sequence[Image.Image]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._pictures = dict(zip(self.prompts, self.pictures, strict=True))

    def identity(self) -> list[Any]:
        """See `Rows`."""
        pixels = [hashlib.sha256(f"{one.mode}{one.size}".encode() + one.tobytes()).hexdigest() for one in self.pictures]
        return [*super().identity(), pixels]

    def first(self) -> torch.Tensor:
        """See `Rows`."""
        return self._rows(self._kept[: self.size])

    def step(self, number: int) -> torch.Tensor:
        """See `Rows`."""
        return self._rows(turn(self._kept, number, self.size, self.seed))

    def held(self) -> Iterator[torch.Tensor]:
        """See `Rows`."""
        for start in range(0, len(self._held), self.size):
            yield self._rows(self._held[start : start + self.size])

    def _rows(self, names: Sequence[str]) -> torch.Tensor:
        pictures = [self._pictures[name] for name in names]
        return torch.cat(
            [self.block.counted(outputs).flatten(0, 1) for outputs in self.block.batches(pictures, self.size)]
        )


def rows_of_pictures(block: PictureBlock, pictures: Sequence[Image.Image], *, size: int, seed: int = 0) -> PictureRows:
    """Rows that `erasers.sae.training.train_sae` learns from.

    Args:
        block: What makes them.
        pictures: At least two.
        size: Pictures a batch.
        seed: Of their order.
    """
    return PictureRows(block, [str(number) for number in range(len(pictures))], size, seed, pictures)
