"""The oracle judge of `shapes`: a small convolutional network that says what is in a picture, or "none of these"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from erasers.worlds.shapes.world import BACKGROUNDS, COLOURS, OBJECTS, STYLES

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
JUDGE_FILE = Path(__file__).parent / "judge.safetensors"


def _block(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class JudgeNetwork(nn.Module):
    """Pictures [n, 3, 32, 32] in [-1, 1] to logits, one tensor [n, answers] a property."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _block(3, 24, 1), _block(24, 48, 2), _block(48, 72, 2), _block(72, 96, 1), _block(96, 128, 2),
            nn.Flatten(), nn.Linear(128 * 16, FEATURES), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(answers)) for name, answers in HEADS.items()})

    def features(self, pictures: Tensor) -> Tensor:
        """The last shared layer [n, 192]."""
        features: Tensor = self.trunk(pictures)
        return features

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        features = self.features(pictures)
        return {name: head(features) for name, head in self.heads.items()}


def load_judge(file: Path = JUDGE_FILE) -> JudgeNetwork:
    """The shipped judge, ready to use.

    Raises:
        FileNotFoundError: the weights are not there.
    """
    network = JudgeNetwork()
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


@torch.no_grad()
def read(network: JudgeNetwork, pictures: Tensor) -> dict[str, Tensor]:
    """Probabilities of every answer, one tensor [n, answers] a property (`HEADS` gives the order)."""
    parts = [network(chunk) for chunk in pictures.split(256)]
    return {name: torch.cat([part[name] for part in parts]).softmax(1) for name in HEADS}
