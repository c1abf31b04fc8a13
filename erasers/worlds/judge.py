"""What the judge of a world is: a network that says what is in a picture, and whose layers measure pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor, nn


class JudgeNetwork(nn.Module, ABC):
    """Pictures to logits, one tensor [n, answers] a property.

    Attributes:
        name: Under which figures are reported that are measured with it; names the weights.
        answers: Property -> its possible answers, in the order of the logits, "none of these" among them.
        size: Width and height of the pictures that it takes.
        dimension: Length of a row of features.
        preprocessing: In words, how a picture becomes its input.
    """

    name: ClassVar[str]
    answers: ClassVar[Mapping[str, Sequence[str]]]
    size: ClassVar[tuple[int, int]]
    dimension: ClassVar[int]
    preprocessing: ClassVar[str]

    @abstractmethod
    def prepare(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures as its input [n, 3, height, width].

        Raises:
            ValueError: A picture has another size.
        """

    @abstractmethod
    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits [n, answers] of every property."""

    @abstractmethod
    def features(self, pictures: Tensor) -> Tensor:
        """The last shared layer [n, dimension]."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The layers whose outputs [n, channels, height, width] say how far pictures moved."""

    @torch.no_grad()
    def read(self, pictures: Tensor) -> dict[str, Tensor]:
        """Probabilities of every answer, one tensor [n, answers] a property."""
        chunks = [self(chunk) for chunk in pictures.split(256)]
        return {name: torch.cat([chunk[name] for chunk in chunks]).softmax(1) for name in self.answers}
