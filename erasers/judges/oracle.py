"""The exact judge of the embedded world."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from erasers.judges import Fingerprint, Takes, Verdict
from erasers.judges.base import PictureJudge, pick_profile
from erasers.judges.weights import file_hash
from erasers.worlds.shapes.judge import HEADS, JUDGE_FILE, load_judge, read, to_tensor


class Oracle(PictureJudge):
    """Says whether a 32 x 32 picture shows every property value that its prompt wants.

    A value is seen when it is the most likely answer of its property, "none of these" being an answer. The verdict's
    probability is the product over the wanted values.

    Args:
        profile: `shapes`.
        weights: The network; the shipped one is Apache-2.0 like the rest of the library.
        device: Where it runs.

    Raises:
        ValueError: Another profile.
        FileNotFoundError: The weights are not there.
    """

    takes = Takes((32, 32))
    sees = HEADS

    def __init__(self, profile: str = "shapes", *, weights: Path = JUDGE_FILE, device: str = "cpu") -> None:
        self.name = f"oracle/{pick_profile('oracle', profile, ('shapes',))}"
        self._network = load_judge(weights).to(device)
        self._device = device
        self.fingerprint = Fingerprint(
            files={weights.name: file_hash(weights)},
            classes={name: list(answers) for name, answers in HEADS.items()},
            threshold=None,
            rule="every wanted value is the most likely answer of its property",
            preprocessing="RGB 32 x 32 in [-1, 1], one at a time",
        )

    def look(self, picture: Image.Image, wants: Mapping[str, str]) -> Verdict:
        """See `PictureJudge.look`."""
        answers = read(self._network, to_tensor([picture]).to(self._device))
        seen, probability = True, 1.0
        for name, value in wants.items():
            index = HEADS[name].index(value)
            seen &= int(answers[name][0].argmax()) == index
            probability *= float(answers[name][0][index])
        return Verdict(seen, probability)
