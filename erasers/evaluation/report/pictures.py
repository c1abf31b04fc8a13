"""Pictures inside the page of a report, small enough that the page stays so."""

from __future__ import annotations

import base64
import io

from PIL import Image

LARGEST, SMALL, MOST_BYTES, MOST_PAIRS = 512, 128, 80_000, 32
"""Longest side and longest side that is magnified, in pixels; bytes of one picture; prompts on a page: at most 7 MB."""


def embedded(image: Image.Image) -> str:
    """A picture as a data URI of at most 4 / 3 `MOST_BYTES`: small ones as they are, others as a JPEG."""
    if max(image.size) <= SMALL:
        content, kind = _encoded(image, "PNG"), "png"
        if len(content) <= MOST_BYTES:
            return _uri(kind, content)
    side = LARGEST
    while True:
        shrunk = image.convert("RGB")
        shrunk.thumbnail((side, side))
        for quality in (85, 70, 50):
            content = _encoded(shrunk, "JPEG", quality=quality)
            if len(content) <= MOST_BYTES:
                return _uri("jpeg", content)
        side //= 2


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
