"""What networks see in pictures: features of a whole picture, activations by layer, CLIP scores.

The extractors that papers use are large downloads; any object with a name, a dimension and a call will do. Pictures are
read one at a time, so that features do not depend on what else is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from PIL import Image

    from erasers.worlds.judge import JudgeNetwork

T = TypeVar("T")


class FeatureExtractor(Protocol):
    """Pictures to vectors."""

    @property
    def name(self) -> str:
        """Under which its figures are reported; names the weights."""

    @property
    def dimension(self) -> int:
        """Length d of a vector."""

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Features [n, d], float64 on the CPU."""


class JudgeFeatures:
    """The last shared layer of the judge of a world, scaled to length sqrt(d).

    Unscaled, a few long vectors rule the cubic kernel of the KID. Verdicts of the oracle come from the same network, so
    what fools one may fool the other.

    Args:
        network: The judge.
    """

    def __init__(self, network: JudgeNetwork) -> None:
        self.name, self.dimension, self._network = network.name, network.dimension, network

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Features [n, d].

        Raises:
            ValueError: A picture has another size than the judge takes.
        """
        features = _one_by_one(
            images, lambda image: self._network.features(self._network.prepare([image])), self.dimension
        )
        return sqrt(self.dimension) * normalize(features, dim=1)


class ClipFeatures:
    """An open_clip model: picture features of length 1, and CLIP scores. Needs the extra `[clip]`.

    Args:
        folder: With `open_clip_config.json` and safetensors.
        name: Under which its figures are reported.
        device: Where it runs.

    Raises:
        ImportError: The extra is not installed.
    """

    def __init__(self, folder: Path, name: str, *, device: str = "cpu") -> None:
        from erasers.judges.clip_zeroshot import load_open_clip

        self._model, self._preprocess, self._tokenizer = load_open_clip(folder, device)
        self.name, self._device = name, device
        self.dimension = len(self._read_text("")[0])

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Features [n, d]."""
        return _one_by_one(images, self._read_image, self.dimension)

    @torch.inference_mode()
    def scores(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """CLIP score of each picture with its text, 100 max(0, cosine): [n].

        Source: J. Hessel et al., CLIPScore, arXiv:2104.08718, equation 1, with 100 instead of 2.5, as is usual for
        generated pictures. Scores of different models cannot be compared.

        Raises:
            ValueError: Lengths differ.
        """
        if len(images) != len(texts):
            raise ValueError(f"expected one text for each picture, got {len(texts)} for {len(images)}")
        return 100 * (self(images) * _one_by_one(texts, self._read_text, self.dimension)).sum(1).clamp(min=0)

    def _read_image(self, image: Image.Image) -> Tensor:
        pixels = self._preprocess(image)[None].to(self._device)
        features: Tensor = self._model.encode_image(pixels, normalize=True)
        return features

    def _read_text(self, text: str) -> Tensor:
        features: Tensor = self._model.encode_text(self._tokenizer([text]).to(self._device), normalize=True)
        return features


def _one_by_one(items: Sequence[T], read: Callable[[T], Tensor], dimension: int) -> Tensor:
    """[n, dimension] in float64; in a batch the last bits of a row would depend on its neighbours."""
    if not items:
        return torch.zeros(0, dimension, dtype=torch.float64)
    return torch.cat([read(item).double().cpu() for item in items])


@dataclass(frozen=True)
class Layers:
    """Activations of some layers of a network.

    Args:
        name: Under which figures are reported; names the weights.
        network: In evaluation mode.
        layers: Modules of it, whose outputs are [n, channels, height, width].
        prepare: Pictures to the network's input.
    """

    name: str
    network: nn.Module
    layers: Sequence[nn.Module]
    prepare: Callable[[Sequence[Image.Image]], Tensor]

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> list[Tensor]:
        """Activations [channels, height * width] of each layer, float64 on the CPU."""
        outputs: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs.append(output[0].flatten(1).double().cpu())

        hooks = [layer.register_forward_hook(keep) for layer in self.layers]
        try:
            self.network(self.prepare([image]))
        finally:
            for hook in hooks:
                hook.remove()
        return outputs


def judge_layers(network: JudgeNetwork) -> Layers:
    """The blocks of the judge of a world."""
    return Layers(network.name, network, network.blocks(), network.prepare)
