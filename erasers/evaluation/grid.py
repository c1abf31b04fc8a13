"""The before/after picture: prompts, written out, beside what the model draws for them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Generic, TypeVar

from PIL import Image, ImageDraw, ImageFont

from erasers.files.atomic import write_atomically

INK, PALE, GOOD, BAD, LINE = "#1c1e21", "#6b7178", "#1a7f37", "#b3261e", "#d5d9de"
_TEXT_WIDTH, _GAP, _MARGIN, _HEAD, _NOTE = 290, 14, 28, 34, 24
_SMALL, _SHOWN = 96, 256


P = TypeVar("P")


@dataclass(frozen=True)
class Cell(Generic[P]):
    """One picture with what the judge says about it, and whether that is welcome (None: neither).

    The picture is one, or the data URI of one on a page.
    """

    image: P
    note: str = ""
    good: bool | None = None


@dataclass(frozen=True)
class GridRow:
    """One prompt with its pictures, left to right; rows of one section stand together."""

    section: str
    text: str
    cells: Sequence[Cell[Image.Image]]


def draw_grid(title: str, rows: Sequence[GridRow], columns: Sequence[str] = ("before", "after")) -> Image.Image:
    """Draw the rows in two panels, or in one when there are few.

    Args:
        title: Stands at the top.
        rows: At least one, each with one cell a column.
        columns: Heads of the picture columns.

    Raises:
        ValueError: No rows, or a row with another number of cells.
    """
    if not rows or any(len(row.cells) != len(columns) for row in rows):
        raise ValueError(f"expected rows of {len(columns)} cells, got {[len(row.cells) for row in rows]}")
    shown = [[show(cell.image) for cell in row.cells] for row in rows]
    side = max(image.width for images in shown for image in images)
    tall = max(image.height for images in shown for image in images)
    width = _TEXT_WIDTH + len(columns) * (side + _GAP)
    panels = _panels(rows)
    heights = [_panel_height(rows[start:stop], tall) for start, stop in panels]
    sheet = Image.new(
        "RGB",
        (2 * _MARGIN + len(panels) * width + (len(panels) - 1) * _MARGIN, 2 * _MARGIN + 44 + max(heights)),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    draw.text(
        (_MARGIN, _MARGIN), _clip(title, _font(20, bold=True), sheet.width - 2 * _MARGIN), INK, _font(20, bold=True)
    )
    for panel, (start, stop) in enumerate(panels):
        corner = (_MARGIN + panel * (width + _MARGIN), _MARGIN + 44)
        _draw_panel(sheet, corner, rows[start:stop], shown[start:stop], columns, (side, tall, width))
    return sheet


def show(image: Image.Image) -> Image.Image:
    """A picture at a size that can be looked at: small ones four times as large pixel by pixel, large ones shrunk."""
    if max(image.size) <= _SMALL:
        return image.resize((4 * image.width, 4 * image.height), Image.Resampling.NEAREST)
    scale = min(1.0, _SHOWN / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def tile(images: Sequence[Image.Image], columns: int, gap: int = 8) -> Image.Image:
    """Pictures of one size in a plain grid on white, row by row."""
    shown = [show(image) for image in images]
    width, height = shown[0].size
    count = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, count * (height + gap) + gap), "white")
    for index, image in enumerate(shown):
        sheet.paste(image, (gap + index % columns * (width + gap), gap + index // columns * (height + gap)))
    return sheet


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG; it appears whole or not at all."""
    write_atomically(path, lambda part: image.save(part, format="PNG"))


def _panels(rows: Sequence[GridRow]) -> list[tuple[int, int]]:
    """Where the panels start and stop: a break between sections, as near the middle as there is one."""
    breaks = [i for i in range(1, len(rows)) if rows[i].section != rows[i - 1].section]
    if len(rows) <= 4 or not breaks:
        return [(0, len(rows))]
    middle = min(breaks, key=lambda i: abs(2 * i - len(rows)))
    return [(0, middle), (middle, len(rows))]


def _panel_height(rows: Sequence[GridRow], tall: int) -> int:
    sections = 1 + sum(a.section != b.section for a, b in zip(rows, rows[1:], strict=False))
    return sections * _HEAD + len(rows) * (tall + _NOTE)


def _draw_panel(
    sheet: Image.Image,
    corner: tuple[int, int],
    rows: Sequence[GridRow],
    shown: Sequence[Sequence[Image.Image]],
    columns: Sequence[str],
    sizes: tuple[int, int, int],
) -> None:
    draw = ImageDraw.Draw(sheet)
    side, tall, width = sizes
    left, y = corner
    section = None
    for row, images in zip(rows, shown, strict=True):
        if row.section != section:
            section = row.section
            draw.line((left, y + 2, left + width - _GAP, y + 2), LINE, 1)
            draw.text(
                (left, y + 9), _clip(section, _font(13, bold=True), _TEXT_WIDTH - _GAP), INK, _font(13, bold=True)
            )
            for column, head in enumerate(columns):
                draw.text((left + _TEXT_WIDTH + column * (side + _GAP), y + 9), head, PALE, _font(14))
            y += _HEAD
        draw.multiline_text((left, y + 4), textwrap.fill(row.text, 31), INK, _font(15), spacing=5)
        for column, (cell, image) in enumerate(zip(row.cells, images, strict=True)):
            x = left + _TEXT_WIDTH + column * (side + _GAP)
            sheet.paste(image, (x, y))
            colour = PALE if cell.good is None else GOOD if cell.good else BAD
            draw.text((x, y + tall + 2), cell.note, colour, _font(12, bold=cell.good is False))
        y += tall + _NOTE


def _clip(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """As much of a text as fits, with dots where something is missing."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


@lru_cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)
