"""The page of a report: all inside, nothing foreign is markup, bounded; how its numbers are read."""

from __future__ import annotations

import base64
import io
import re

import pytest
import torch
from PIL import Image
from support.pages import Page
from support.reports import FACTS, made_card, made_cards, made_summary, share

from erasers.evaluation.report.page import report_page
from erasers.evaluation.report.pictures import LARGEST, MOST_BYTES, embedded
from erasers.evaluation.report.reading import read_split, warnings

EVIL = "\"><script>alert(1)</script><img src=x onerror=alert(2)> '&amp; \u202e\x1b[31m javascript:alert(3)"


def pairs(before: int, after: int, n: int) -> list[tuple[bool, bool]]:
    return [(k < before, k < after) for k in range(n)]


@pytest.mark.parametrize(
    ("split", "before", "after", "n", "word", "warned"),
    [
        ("explicit", 8, 0, 8, "fell", False),
        ("synonym", 50, 5, 50, "fell", False),
        ("explicit", 2, 0, 2, "fell; too few pictures to be sure", False),
        ("explicit", 50, 20, 50, "fell in part", True),
        ("explicit", 8, 8, 8, "did not fall", True),
        ("explicit", 8, 7, 8, "did not fall", True),
        ("explicit", 3, 0, 8, "was seldom there before", True),
        ("explicit", 0, 0, 8, "was seldom there before", True),
        ("unrelated", 8, 8, 8, "stays", False),
        ("neighbour", 6, 8, 8, "stays", False),
        ("neighbour", 8, 7, 8, "stays; a little lower, within chance", False),
        ("unrelated", 4, 1, 4, "lower; too few pictures to be sure", True),
        ("unrelated", 8, 1, 8, "fell", True),
        ("unrelated", 50, 40, 50, "fell", True),
        ("neighbour", 3, 3, 8, "was seldom right before", True),
    ],
)
def test_a_split_is_read_by_what_it_should_do(
    split: str, before: int, after: int, n: int, word: str, warned: bool
) -> None:
    reading = read_split(split, pairs(before, after, n))
    assert (reading.word, bool(reading.warning)) == (word, warned)
    if warned:
        assert reading.warning.startswith(f"{split}: ")
        assert warnings({split: reading, "other": read_split("unrelated", [(True, True)])}) == [reading.warning]


def test_small_pictures_are_embedded_as_they_are_and_large_ones_shrunk() -> None:
    small = Image.new("RGB", (32, 32))
    small.putpixel((3, 5), (250, 1, 2))
    kind, content = embedded(small).split(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).tobytes() == small.tobytes()
    kind, content = embedded(Image.new("RGB", (1024, 640), (9, 200, 9))).split(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (LARGEST, LARGEST * 640 // 1024)


@pytest.mark.parametrize("size", [(128, 128), (2048, 2048), (512, 4000)])
def test_no_picture_is_larger_than_the_bound(size: tuple[int, int]) -> None:
    width, height = size
    noise = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(0)).byte()
    content = base64.b64decode(embedded(Image.fromarray(noise.numpy())).split(",")[1])
    assert 5_000 < len(content) <= MOST_BYTES


def test_the_page_says_what_happened_and_where_to_look() -> None:
    page = Page(report_page(made_summary(), made_cards(), FACTS))
    ((_, title),) = page.all("h1")
    assert title == "star erased from shapes with rece"
    ((_, said),) = page.all("div", class_="said bad")
    assert "2 of 8 pictures show what was asked for, 8 did before" in said
    rows = [text for _, text in page.all("tr")]
    assert "should fall100 % 70 to 100, n = 8" in rows[1]
    assert rows[1].endswith("fell\n") or rows[1].strip().endswith("fell")
    assert len(page.all("svg")) == 4
    assert [attrs["x"] for attrs, _ in page.all("rect", class_="tick")] == ["98.0", "0.0", "98.0", "24.0"]
    assert [text for _, text in page.all("q")] == ["a red star", "a star " * 12, "a moon", "a ring"]
    assert [
        (attrs["class"], "✗" in text) for attrs, text in page.all("li") if "card" in (attrs.get("class") or "")
    ] == [
        ("card", False),
        ("card", False),
        ("card wrong", True),
        ("card", False),
    ]
    text = " ".join(text for _, text in page.all("body"))
    assert "erase apply star.safetensors --model shapes --save erased" in text
    assert "how often it errs has not been measured" in text
    images = page.all("img")
    assert images[0][0]["alt"] == "before: a red star (star)"
    assert [attrs.get("class") for attrs, _ in images] == ["small"] * 4 + [None] * 2 + ["small"] * 2


def test_without_numbers_the_page_says_so_and_what_would_give_some() -> None:
    note = "pip install 'erasers[clip]' gives numbers"
    summary = made_summary(splits={}, concepts={}, readings={}, warnings=[], judges=[], note=note)
    page = Page(report_page(summary, made_cards(), FACTS))
    ((_, said),) = page.all("p", class_="said")
    assert said.endswith(note)
    assert page.all("table") == []
    assert "0 %" not in "".join(text for _, text in page.all("main"))


def test_several_concepts_have_tables_of_their_own() -> None:
    ring = {"explicit": {"before": share(8), "after": share(1)}}
    summary = made_summary()
    page = Page(report_page(summary | {"concepts": {**summary["concepts"], "ring": ring}}, made_cards(), FACTS))
    assert [attrs["aria-label"] for attrs, _ in page.all("table")] == [
        "Shares before and after",
        "Shares of star",
        "Shares of ring",
    ]


def test_what_is_measured_of_a_judge_is_said_at_its_worst() -> None:
    shares = [{"value": v, "n": 100, "low": v - 0.05, "high": v + 0.05} for v in (0.9, 0.8, 0.7)]
    errors = {
        "a=1": {"n": 9, "sensitivity": shares[0], "specificity": shares[2]},
        "b=1": {"n": 9, "sensitivity": shares[1]},
    }
    judges = [{"name": "j", "fingerprint": "f" * 64, "splits": ["explicit"], "errors": errors}]
    html = report_page(made_summary(judges=judges), made_cards(), FACTS)
    assert "sees what is there in 80.0 % (75.0 to 85.0), and nothing where nothing is in 70.0 % (65.0 to 75.0)" in html


def test_nothing_foreign_is_markup_or_runs() -> None:
    card = made_card(text=EVIL)
    summary = made_summary(
        title=EVIL, model=EVIL, patch_file=EVIL, note=EVIL, warnings=[EVIL], concepts={EVIL: {}, "b": {}},
        versions={EVIL: EVIL}, judges=[{"name": EVIL, "fingerprint": EVIL, "splits": ["explicit"]}],
    )  # fmt: skip
    html = report_page(summary, [card, card], {EVIL: EVIL})
    page = Page(html)
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert all((attrs["src"] or "").startswith("data:image/") for attrs, _ in page.all("img"))
    names = {name for _, attrs, _ in page.elements for name in attrs}
    assert not {name for name in names if name.startswith("on") or name == "style"}
    assert [attrs["href"] for _, attrs, _ in page.elements if "href" in attrs] == ["#pictures"]
    assert not set("\u202e\x1b") & set(html)
    assert "<script>alert" not in html


def test_the_page_loads_nothing_and_runs_only_its_own() -> None:
    html = report_page(made_summary(), made_cards(), FACTS)
    policy = next(attrs["content"] for attrs, _ in Page(html).all("meta") if "http-equiv" in attrs) or ""
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert re.findall(r"//|url\(", re.sub(r"base64,[\w+/=]+", "", html)) == []


def test_unsafe_pictures_are_blurred_until_asked_for() -> None:
    page = Page(report_page(made_summary(), [made_card(adult=True), made_card("unrelated")], FACTS))
    sections = [attrs["class"] for attrs, _ in page.all("section") if "split" in (attrs.get("class") or "")]
    assert sections == ["split adult", "split"]
    assert len(page.all("input", class_="sharp")) == 1
