"""Pictures with boxes around what is erased, drawn by the model or brought along in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from erasers.files.reading import at_home, read_json, value_of
from erasers.judges.boxes import Box
from erasers.training.pictures import upright

_MOST = 100_000


@dataclass(frozen=True)
class Marked:
    """A picture, its prompt, and where it shows what.

    Args:
        image: The picture.
        prompt: Its caption.
        boxes: Name of a concept -> its boxes; a concept that is not there is absent.
    """

    image: Image.Image
    prompt: str
    boxes: Mapping[str, Sequence[Box]]


def read_marked(file: str | Path, concepts: Sequence[str]) -> list[Marked]:
    """The pictures of a JSON file: a list of `{"file": ..., "prompt": ..., "boxes": {concept: [[l, t, r, b], ...]}}`.

    Files lie relative to it; boxes are in pixels.

    Args:
        file: The JSON file.
        concepts: Those that are erased; boxes of others are left out.

    Raises:
        ValueError: Another content; names the entry.
        OSError: The file cannot be read.
    """
    path = at_home(file)
    entries = read_json(path)
    if not isinstance(entries, list) or not 0 < len(entries) <= _MOST:
        raise ValueError(f"{path}: expected a list of 1 to {_MOST} pictures, got another content")
    return [_entry(entry, path, f"{path}, picture {number + 1}", concepts) for number, entry in enumerate(entries)]


def _entry(entry: Any, path: Path, what: str, concepts: Sequence[str]) -> Marked:
    try:
        image = upright(path.parent / value_of(entry, "file", str))
        boxes = value_of(entry, "boxes", dict)
        listed = {name: value_of(boxes, name, list) for name in concepts if name in boxes}
        own = {name: [_box(box, image.size) for box in listed[name]] for name in listed if listed[name]}
        return Marked(image, value_of(entry, "prompt", str), own)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _box(value: Any, size: tuple[int, int]) -> Box:
    numbers = isinstance(value, list) and len(value) == 4 and all(isinstance(side, (int, float)) for side in value)
    width, height = size
    if numbers and 0 <= value[0] < value[2] <= width and 0 <= value[1] < value[3] <= height:
        return float(value[0]), float(value[1]), float(value[2]), float(value[3])
    raise ValueError(f"expected boxes [left, top, right, bottom] within {width} x {height} pixels, got {value!r:.80}")
