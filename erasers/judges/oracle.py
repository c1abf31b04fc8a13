"""The exact judge of the embedded world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from erasers.judges import Verdict
from erasers.shapes.judge import HEADS, JUDGE_FILE, load_judge, read, to_tensor
from erasers.shapes.prompts import Prompt


class Oracle:
    """Says whether a 32 x 32 picture shows every property value that its prompt wants.

    A value is seen when it is the most likely answer of its property, "none of these" being an answer. The verdict's
    probability is the product over the wanted values.
    """

    name = "oracle"

    def __init__(self, weights: Path = JUDGE_FILE) -> None:
        self._network = load_judge(weights)

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Verdict]:
        """One verdict a picture.

        Raises:
            ValueError: lengths differ, a picture is not 32 x 32, or a wanted value is no answer of its property.
        """
        if len(images) != len(prompts):
            raise ValueError(f"expected one prompt for each picture, got {len(prompts)} for {len(images)}")
        if not images:
            return []
        answers = read(self._network, to_tensor(images))
        verdicts = []
        for row, prompt in enumerate(prompts):
            seen, probability = True, 1.0
            for name, value in prompt.wants.items():
                if value not in HEADS.get(name, ()):
                    raise ValueError(f"the oracle cannot see {name} {value!r}; it knows {HEADS}")
                index = HEADS[name].index(value)
                seen &= int(answers[name][row].argmax()) == index
                probability *= float(answers[name][row][index])
            verdicts.append(Verdict(seen, probability))
        return verdicts
