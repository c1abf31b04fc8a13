"""The before/after picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from erasers.evaluation.grid import Cell, GridRow, draw_grid, save_image, show, tile

RED, BLUE = (200, 30, 30), (30, 30, 200)


def row(section: str, text: str = "a star", size: tuple[int, int] = (32, 32)) -> GridRow:
    return GridRow(section, text, [Cell(Image.new("RGB", size, RED), "star", True), Cell(Image.new("RGB", size, BLUE))])


def test_small_pictures_are_magnified_pixel_by_pixel() -> None:
    image = Image.new("RGB", (32, 32))
    image.putpixel((1, 0), RED)
    shown = show(image)
    assert shown.size == (128, 128)
    assert [shown.getpixel((x, 0)) for x in (3, 4, 7, 8)] == [(0, 0, 0), RED, RED, (0, 0, 0)]


def test_large_pictures_shrink_in_proportion() -> None:
    assert show(Image.new("RGB", (1024, 512))).size == (256, 128)


def test_the_grid_has_every_picture_and_its_text() -> None:
    grid = draw_grid("title", [row("explicit"), row("explicit"), row("neighbour")])
    counts = {colour: count for count, colour in grid.getcolors(maxcolors=2**24)}
    assert counts[RED] == counts[BLUE] == 3 * 128 * 128
    blank = draw_grid("title", [row("explicit", " ")])
    written = draw_grid("title", [row("explicit", "a purple star in the style of umbrane")])
    assert blank.size == written.size
    assert blank.tobytes() != written.tobytes()


def test_many_rows_stand_in_two_panels_broken_between_sections() -> None:
    few, many = draw_grid("t", [row("a")]), draw_grid("t", [row("a")] * 4 + [row("b")] * 4)
    assert many.width > 1.9 * few.width
    assert many.height < 5 * (few.height - 80)


def test_long_titles_and_mixed_sizes_fit() -> None:
    grid = draw_grid("a very long title " * 40, [row("section " * 30, "word " * 60), row("b", size=(512, 256))])
    assert grid.width < 1200


@pytest.mark.parametrize("rows", [[], [GridRow("a", "b", [Cell(Image.new("RGB", (8, 8)))])]])
def test_rows_that_do_not_fit_are_refused(rows: list[GridRow]) -> None:
    with pytest.raises(ValueError, match="expected rows of 2 cells"):
        draw_grid("t", rows)


def test_tiles_keep_their_order(tmp_path: Path) -> None:
    sheet = tile([Image.new("RGB", (32, 32), RED), Image.new("RGB", (32, 32), BLUE)], columns=2)
    assert (sheet.getpixel((20, 20)), sheet.getpixel((160, 20))) == (RED, BLUE)
    save_image(sheet, tmp_path / "sheet.png")
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
