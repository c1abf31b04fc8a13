"""Leaderboards as tests read them: the elements of a page, the rows of Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from erasers.evaluation.leaderboard.write import write_leaderboard

VOID = {"meta", "input", "img", "br", "rect"}


class Page(HTMLParser):
    """Elements with their attributes and text; fails on an element that is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for place in self.open:
            self.elements[place][2].append(data)

    def all(self, tag: str, **attributes: str) -> list[tuple[dict[str, str | None], str]]:
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [
            (attrs, "".join(text))
            for name, attrs, text in self.elements
            if name == tag and wanted.items() <= attrs.items()
        ]


def lines(markdown: str, name: str) -> list[list[str]]:
    """The cells of a row, in each table that has it."""
    rows = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("| ")]
    return [row for row in rows if any(cell.startswith(f"**{name}**") for cell in row[:2])]


def build(store: Path, **options: Any) -> tuple[str, str]:
    write_leaderboard([store], store / "out", **options)
    return tuple((store / "out" / f"leaderboard.{kind}").read_text(encoding="utf-8") for kind in ("md", "html"))  # type: ignore[return-value]


def build_changed(files: list[Path], edit: Callable[[dict[str, Any]], object]) -> tuple[str, Page]:
    """The leaderboard of the result files of a task in which everything was changed, as Markdown and as a page."""
    for file in files:
        change(file, edit)
    markdown, html = build(files[0].parents[1])
    page = Page(html)
    assert_plain(page, markdown, html)
    return markdown, page


def assert_plain(page: Page, markdown: str, html: str) -> None:
    """Nothing that a result file says is markup, runs or turns the direction of writing."""
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert not [attrs for _, attrs, _ in page.elements if {"onload", "onerror"} & set(attrs)]
    assert all((attrs["src"] or "").startswith("data:") for attrs, _ in page.all("img"))
    assert not set("\u202e\x07") & set(html + markdown)
    assert "<" not in markdown.replace("\\<", "")


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
