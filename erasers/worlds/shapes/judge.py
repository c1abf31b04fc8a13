"""The oracle judge of `shapes`: a small convolutional network that says what is in a picture, or "none of these"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from erasers.worlds.judge import JudgeNetwork
from erasers.worlds.shapes.paths import JUDGE_FILE
from erasers.worlds.shapes.vocabulary import BACKGROUNDS, COLOURS, OBJECTS, STYLES

NONE = "none"
HEADS: dict[str, tuple[str, ...]] = {
    "object": (*OBJECTS, NONE),
    "colour": (*COLOURS, NONE),
    "style": STYLES,
    "background": BACKGROUNDS,
    "mark": (NONE, "stamp"),
}
"""Property -> its possible answers, in the order of the logits."""

FEATURES = 192


def _block(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class ShapesJudge(JudgeNetwork):
    """Pictures [n, 3, 32, 32] in [-1, 1] to logits, one tensor [n, answers] a property."""

    name, answers, size, dimension = "shapes-judge", HEADS, (32, 32), FEATURES
    preprocessing = "RGB 32 x 32 in [-1, 1]"

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _block(3, 24, 1), _block(24, 48, 2), _block(48, 72, 2), _block(72, 96, 1), _block(96, 128, 2),
            nn.Flatten(), nn.Linear(128 * 16, FEATURES), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(answers)) for name, answers in HEADS.items()})

    def prepare(self, images: Sequence[Image.Image]) -> Tensor:
        """See `to_tensor`."""
        return to_tensor(images)

    def features(self, pictures: Tensor) -> Tensor:
        """The last shared layer [n, 192]."""
        features: Tensor = self.trunk(pictures)
        return features

    def blocks(self) -> list[nn.Module]:
        """The five convolutional blocks."""
        return [block for block in self.trunk if isinstance(block, nn.Sequential)]

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """See `JudgeNetwork.forward`."""
        features = self.features(pictures)
        return {name: head(features) for name, head in self.heads.items()}


def load_judge(file: Path = JUDGE_FILE) -> ShapesJudge:
    """The shipped judge, ready to use.

    Raises:
        FileNotFoundError: the weights are not there.
    """
    network = ShapesJudge()
    network.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in load_file(file).items()})
    return network.eval().requires_grad_(False)


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of 32 x 32 pixels as [n, 3, 32, 32] in [-1, 1].

    Raises:
        ValueError: a picture has another size.
    """
    for image in images:
        if image.size != (32, 32):
            raise ValueError(
                f"expected 32 x 32 pictures, got {image.size[0]} x {image.size[1]}; the oracle reads shapes only"
            )
    rows = [torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8) for image in images]
    return torch.stack(rows).view(-1, 32, 32, 3).permute(0, 3, 1, 2).float() / 127.5 - 1
