"""The pictures that a user gives to the command to draw from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from erasers.cli.options import ControlFile, ImageFile, ImageStrength, MaskFile
from erasers.models.inputs import Pictures

if TYPE_CHECKING:
    from PIL import Image

FORMATS = {"": "PNG", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
"""Format of a picture that is written, by the ending of its name."""
_QUALITY = 95
SIDES = (8, 4096)
"""Pixels that a side of a picture may have."""


@dataclass(frozen=True)
class DrawnFrom:
    """What pictures are drawn from."""

    image: ImageFile = None
    mask: MaskFile = None
    control_image: ControlFile = None
    image_strength: ImageStrength = None

    def files(self) -> dict[str, Path | None]:
        """What is read, by option."""
        return {"--image": self.image, "--mask": self.mask, "--control-image": self.control_image}

    @staticmethod
    def names() -> list[str]:
        """The options."""
        return ["--image", "--mask", "--control-image", "--image-strength"]

    def read(self) -> Pictures:
        """The pictures.

        Raises:
            ValueError: Not a picture, one too small or too large, a mask without its picture, or a strength out of
                range.
            FileNotFoundError: No such file.
        """
        strength = self.image_strength
        if strength is not None and not 0 < strength <= 1:
            raise ValueError(f"expected --image-strength above 0 and up to 1, got {strength}")
        for option, value in {"--mask": self.mask, "--image-strength": strength}.items():
            if value is not None and self.image is None:
                raise ValueError(f"{option} goes with a picture; add --image FILE")
        image, mask = _read(self.image, "--image"), _read(self.mask, "--mask", "L")
        return Pictures(image, mask, _read(self.control_image, "--control-image"), strength)


def picture_format(path: Path) -> str:
    """The format of a picture that is written.

    Raises:
        ValueError: The name has another ending.
    """
    if path.suffix.lower() not in FORMATS:
        endings = ", ".join(ending for ending in FORMATS if ending)
        raise ValueError(f"--out {path}: expected a picture whose name ends in {endings}, got {path.suffix!r}")
    return FORMATS[path.suffix.lower()]


def in_format(write: Callable[[Path], object], kind: str) -> Callable[[Path], None]:
    """What writes a picture in a format, made of what writes it as PNG."""

    def write_it(path: Path) -> None:
        from PIL import Image

        write(path)
        if kind != "PNG":
            with Image.open(path) as png:
                picture = png.convert("RGB")
            picture.save(path, format=kind, quality=_QUALITY)

    return write_it


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
