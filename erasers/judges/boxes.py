"""Where in a picture a concept is: boxes, and judges that say them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from PIL import Image

from erasers.judges import Judge

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the picture."""
Detector: TypeAlias = Callable[[Image.Image, str], Sequence[Box]]
"""(picture, name of a concept) -> where the picture shows it; no box where it does not."""


@runtime_checkable
class Locating(Protocol):
    """A judge that says where, too."""

    def boxes(self, picture: Image.Image, wants: Mapping[str, str]) -> list[Box]:
        """Where an RGB picture shows a value; arguments as for `PictureJudge.look`."""


def detector_of(judge: Judge, concepts: Sequence[str]) -> Detector:
    """A judge as a detector of concepts that it knows.

    Args:
        judge: Such as `get_judge("nudenet")`.
        concepts: Their names, which are values of properties that the judge sees.

    Raises:
        ValueError: A judge that says no boxes, or a concept that it does not see.
    """
    if not isinstance(judge, Locating):
        raise ValueError(f"expected a judge that says where, such as oracle or nudenet, got {judge.name}")
    wants = {concept: _wanted(judge, concept) for concept in concepts}
    return lambda picture, concept: judge.boxes(picture, wants[concept])


def _wanted(judge: Judge, concept: str) -> dict[str, str]:
    for name, values in judge.sees.items():
        if concept in values:
            return {name: concept}
    known = ", ".join(value for values in judge.sees.values() for value in values)
    raise ValueError(f"expected a concept that {judge.name} sees among {known}, got {concept!r}")
