"""The exact judges of the embedded worlds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from erasers import worlds
from erasers.files.hashing import file_sha256
from erasers.judges import Fingerprint, Takes, Verdict, of_worlds
from erasers.judges.base import PictureJudge, pick_profile
from erasers.judges.boxes import Box


class Oracle(PictureJudge):
    """Says whether a picture of an embedded world shows every property value that its prompt wants.

    A value is seen when it is the most likely answer of its property, "none of these" being an answer. The verdict's
    probability is the product over the wanted values.

    Args:
        profile: The world.
        weights: The network; the shipped ones are Apache-2.0 like the rest of the library.
        device: Where it runs.

    Raises:
        ValueError: Another profile.
        FileNotFoundError: The weights are not there.
    """

    def __init__(self, profile: str = worlds.DEFAULT, *, weights: Path | None = None, device: str = "cpu") -> None:
        world = worlds.get(pick_profile("oracle", profile, of_worlds("oracle")))
        weights = weights or world.judge_file
        self.name = world.judge
        self._network = world.network(weights).to(device)
        self._device, self._places = device, world.places
        self.takes, self.sees = Takes(self._network.size), self._network.answers
        self.fingerprint = Fingerprint(
            files={weights.name: file_sha256(weights)},
            classes={name: list(answers) for name, answers in self.sees.items()},
            threshold=None,
            rule="every wanted value is the most likely answer of its property",
            preprocessing=f"{self._network.preprocessing}, one at a time",
        )

    def look(self, picture: Image.Image, wants: Mapping[str, str]) -> Verdict:
        """See `PictureJudge.look`."""
        answers = self._network.read(self._network.prepare([picture]).to(self._device))
        seen, probability = True, 1.0
        for name, value in wants.items():
            index = self.sees[name].index(value)
            seen &= int(answers[name][0].argmax()) == index
            probability *= float(answers[name][0][index])
        return Verdict(seen, probability)

    def boxes(self, picture: Image.Image, wants: Mapping[str, str]) -> list[Box]:
        """See `Locating.boxes`: the place that the world has for a value, and the whole picture for one without."""
        if not self.look(picture, wants).value:
            return []
        places = [self._places.get(value, (0.0, 0.0, 1.0, 1.0)) for value in wants.values()]
        width, height = picture.size
        return [(left * width, top * height, right * width, bottom * height) for left, top, right, bottom in places]
