"""Example pictures of a concept, as methods see them."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from PIL import Image, ImageOps

from erasers.files.reading import PICTURES, open_picture


def picture(source: Any, size: tuple[int, int]) -> Image.Image:
    """A picture, or the one at a path, upright as its camera says, in that size and in colour.

    Raises:
        ValueError: Neither, or a file that is no picture.
    """
    return upright(source).resize(size, Image.Resampling.BICUBIC)


def upright(source: Any) -> Image.Image:
    """The same in its own size."""
    if isinstance(source, (str, os.PathLike)):
        try:
            source = open_picture(source, PICTURES)
        except (OSError, ValueError) as error:
            raise ValueError(f"expected a picture at {os.fspath(source)}, got none ({error})") from None
    if not isinstance(source, Image.Image):
        raise ValueError(f"expected pictures as PIL images or paths, got {type(source).__name__}: {source!r}")
    return ImageOps.exif_transpose(source).convert("RGB")


def pixels_hash(source: Any) -> str:
    """sha256 of what a method sees of a picture, whatever its file."""
    image = upright(source)
    return hashlib.sha256(f"{image.size} ".encode() + image.tobytes()).hexdigest()
