"""The pictures that a user gives to the command to draw from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from erasers.models.inputs import Pictures

if TYPE_CHECKING:
    from PIL import Image

SIDES = (8, 4096)
"""Pixels that a side of a picture may have."""


def read_pictures(
    image: Path | None, mask: Path | None, control_image: Path | None, strength: float | None = None
) -> Pictures:
    """Read what is drawn from.

    Raises:
        ValueError: Not a picture, one too small or too large, a mask without its picture, or a strength out of range.
        FileNotFoundError: No such file.
    """
    if strength is not None and not 0 < strength <= 1:
        raise ValueError(f"expected --image-strength above 0 and up to 1, got {strength}")
    for option, value in {"--mask": mask, "--image-strength": strength}.items():
        if value is not None and image is None:
            raise ValueError(f"{option} goes with a picture; add --image FILE")
    return Pictures(
        _read(image, "--image"), _read(mask, "--mask", "L"), _read(control_image, "--control-image"), strength
    )


def _read(path: Path | None, option: str, mode: str = "RGB") -> Image.Image | None:
    if path is None:
        return None
    from PIL import ImageOps

    from erasers.files.reading import PICTURES, open_picture

    if not path.is_file():
        raise FileNotFoundError(f"{option} {path}: expected a picture, got no such file")
    try:
        with open_picture(path, PICTURES) as picture:
            least, most = SIDES
            if not least <= min(picture.size) <= max(picture.size) <= most:
                width, height = picture.size
                raise ValueError(f"expected sides of {least} to {most} pixels, got {width} x {height}")
            return ImageOps.exif_transpose(picture).convert(mode)
    except (ValueError, OSError, SyntaxError) as error:
        raise ValueError(f"{option} {path}: {error}") from error
