"""The page of a report in headless Chromium: slider by mouse, finger and keys, phone, schemes, no scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.browser import NO_SCRIPTS, PHONE, Call, assert_legible, needs_browser, open_browser
from support.reports import FACTS, made_card, made_cards, made_summary

from erasers.evaluation.report.page import report_page

pytestmark = [pytest.mark.full, needs_browser]

BOX = "const box = document.querySelector('.pair').getBoundingClientRect(); "
AT = "return document.querySelector('.pair').style.getPropertyValue('--at')"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "index.html"
    cards = [*made_cards(), made_card("synonym", adult=True)]
    path.write_text(report_page(made_summary(note="a note"), cards, FACTS), encoding="utf-8")
    return path


def drag(browser: Call, kind: str, places: list[list[float]]) -> None:
    moves: list[dict[str, Any]] = [{"type": "pointerMove", "x": round(x), "y": round(y)} for x, y in places]
    actions = [moves[0], {"type": "pointerDown", "button": 0}, *moves[1:], {"type": "pointerUp", "button": 0}]
    pointer = {"type": "pointer", "id": kind, "parameters": {"pointerType": kind}, "actions": actions}
    browser("actions", actions=[pointer])


@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_the_line_follows_the_pointer(kind: str, run: Call, browser: Call) -> None:
    run("document.querySelector('.pair').scrollIntoView({block: 'center'})")
    left, middle, width = run(BOX + "return [box.left, box.top + box.height / 2, box.width]")
    drag(browser, kind, [[left + 0.3 * width, middle], [left + 0.5 * width, middle], [left + 0.8 * width, middle]])
    assert abs(float(run(AT).rstrip("%")) - 80) <= 1
    assert run("return document.querySelector('.slider').getAttribute('aria-valuetext')").startswith("80 % before")
    # Behind the picture nothing moves on after the pointer has gone up.
    drag(browser, kind, [[left + 0.2 * width, middle]])
    assert abs(float(run(AT).rstrip("%")) - 20) <= 1
    seen = "return getComputedStyle(document.querySelector('.before')).clipPath"
    assert "80%" in run(seen) or "calc" in run(seen)


def test_the_line_follows_the_keys(run: Call, browser: Call) -> None:
    run("document.querySelector('.slider').focus()")
    keys = [{"type": way, "value": "\ue014"} for _ in range(5) for way in ("keyDown", "keyUp")]
    browser("actions", actions=[{"type": "key", "id": "keys", "actions": keys}])
    assert run(AT) == "55%"
    assert (
        run("return document.activeElement.getAttribute('aria-label')") == "Line between before and after: a red star"
    )


def test_every_control_has_a_name(run: Call) -> None:
    names = "return [...document.querySelectorAll('input')].map(e => e.getAttribute('aria-label') || e.labels.length)"
    assert all(run(names))
    assert all(run("return [...document.images].map(e => e.alt.length)"))
    assert all(run("return [...document.images].map(e => e.naturalWidth)"))


def test_pairs_stand_side_by_side_when_asked(run: Call) -> None:
    boxes = (
        "return [...document.querySelectorAll('.pair')].map(pair => [...pair.querySelectorAll('img')].map(e => "
        "[Math.round(e.getBoundingClientRect().left), Math.round(e.getBoundingClientRect().width)]))"
    )
    assert all(a == b for a, b in run(boxes))
    beside = run("document.querySelector('[value=aside]').click(); " + boxes)
    assert all(b[0] >= a[0] + a[1] for a, b in beside)
    assert all(a == b for a, b in run("document.querySelector('[value=slide]').click(); " + boxes))


def test_everything_fits_the_width_of_a_phone(run: Call, browser: Call) -> None:
    browser("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=PHONE)
    for choice in ("slide", "aside"):
        run(f"document.querySelector('[value={choice}]').click()")
        assert run("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
        right = "[...document.querySelectorAll('td, th, img, p, code, dd')].map(e => e.getBoundingClientRect().right)"
        assert 300 < run(f"return Math.max(...{right})") <= 390


def test_both_schemes_are_legible(run: Call, browser: Call) -> None:
    inks = ", ".join(
        f"getComputedStyle(document.querySelector('{name}')).color" for name in (".quiet", ".good", ".bad")
    )
    body = "getComputedStyle(document.body)"
    for scheme, dark in (("light", False), ("dark", True)):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser("goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params={"features": features})
        paper, *colours = run(f"return [{body}.backgroundColor, {body}.color, {inks}]")
        assert_legible(paper, colours, dark=dark)


def test_unsafe_pictures_are_sharp_only_when_asked(run: Call) -> None:
    seen = "return getComputedStyle(document.querySelector('.adult img')).filter"
    assert run(seen) == "blur(18px)"
    assert run("document.querySelector('.sharp').click(); " + seen) == "none"
    assert run("return getComputedStyle(document.querySelector('.split:not(.adult) img')).filter") == "none"


def test_without_scripts_pictures_stand_side_by_side(page: Path) -> None:
    with open_browser(**NO_SCRIPTS) as browser:
        browser("url", url=page.as_uri())
        script = (
            "return [...document.querySelector('.pair').querySelectorAll('img')].map(e => "
            "[e.getBoundingClientRect().left, e.getBoundingClientRect().right])"
        )
        before, after = browser("execute/sync", script=script, args=[])
        assert after[0] >= before[1] > before[0]
        seen = "return [...document.querySelectorAll('.view, .slider')].some(e => e.checkVisibility())"
        assert browser("execute/sync", script=seen, args=[]) is False
