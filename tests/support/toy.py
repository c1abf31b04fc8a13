"""A second world in a few lines: a tiny random model, a judge that reads the mean colour, and three words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from erasers.asks import Ask, PlainPrompt
from erasers.concept import Concept
from erasers.worlds import World
from erasers.worlds.judge import JudgeNetwork
from support.tiny import make_pipe

NEIGHBOURS = {"star": ("moon",), "moon": ("star",), "ring": ()}
SYNONYMS = {"star": ("red shape",)}


class ToyJudge(JudgeNetwork):
    """One convolution and one matrix, both random."""

    name, answers, size, dimension = "toy-judge", {"object": (*NEIGHBOURS, "none")}, (16, 16), 4
    preprocessing = "RGB 16 x 16 in [0, 1]"

    def __init__(self) -> None:
        super().__init__()
        self.look, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 4)

    def prepare(self, images: Sequence[Image.Image]) -> torch.Tensor:
        return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]) / 255

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.look(pictures).mean((2, 3))

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"object": self.head(self.features(pictures))}

    def blocks(self) -> list[nn.Module]:
        return [self.look]


class Toy(World):
    """A world without a CLIP, without autoencoders and without retrained models."""

    name = "toy"
    steps, guidance, batch, size, seconds = 2, 3.0, 4, 16, 1e-3
    judge = "oracle/toy"
    vocabulary = ("a", "of", "picture", "red", "shape", *NEIGHBOURS)
    words = (*NEIGHBOURS, "red shape")

    def concept(self, word: str) -> Concept:
        name = "star" if word in SYNONYMS["star"] else word
        if name not in NEIGHBOURS:
            raise ValueError(f"toy does not know {word!r}; it knows {', '.join(NEIGHBOURS)}")
        kept = tuple(f"a {other}" for other in NEIGHBOURS if other != name)
        return Concept(name, anchor="shape", kind="object", neighbours=NEIGHBOURS[name], preserve=kept)

    def synonyms(self, name: str) -> Sequence[str]:
        return SYNONYMS.get(name, ())

    def split_prompts(self, name: str, count: int) -> Mapping[str, Sequence[Ask]]:
        others = [word for word in NEIGHBOURS if word != name and word not in NEIGHBOURS[name]]
        words = {"explicit": [name], "synonym": SYNONYMS.get(name), "neighbour": NEIGHBOURS[name], "unrelated": others}
        return {
            split: [
                PlainPrompt(f"a picture of a {some[0]}", seed, {"object": self.concept(some[0]).name})
                for seed in range(count)
            ]
            for split, some in words.items()
            if some
        }

    def draw(self, asks: Sequence[tuple[str, Mapping[str, str]]], erased: Sequence[str]) -> list[Image.Image]:
        return [Image.new("RGB", (16, 16), "grey" if "ring" in text else "white") for text, _ in asks]

    def network(self, file: Path | None = None) -> ToyJudge:
        network = ToyJudge()
        network.load_state_dict(load_file(file or self.judge_file))
        return network.eval().requires_grad_(False)


def make_toy(folder: Path) -> Path:
    """Write the model and the judge of the world, and what registers it, as an installed package does.

    Returns:
        The folder that has to be on the path of modules.
    """
    Toy.folder, Toy.judge_file = folder / "model", folder / "judge.safetensors"
    make_pipe("sd1", folder / "made").save_pretrained(Toy.folder)
    torch.manual_seed(0)
    save_file(ToyJudge().state_dict(), Toy.judge_file)
    installed = folder / "installed"
    facts = installed / "toy-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[erasers.worlds]\ntoy = support.toy:Toy\n")
    return installed
