"""The page of the leaderboard in headless Chromium: it sorts, filters, fits a phone and logs nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_results import PILLARS, write_results

from erasers.evaluation.leaderboard import write_leaderboard

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
OPTIONS = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"], "binary": CHROMIUM}

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two tasks with every detail, one of adult content."""
    store = tmp_path_factory.mktemp("store")
    write_results(store, name="first", detailed=True)
    write_results(store, name="second", cases=["heart"], adult=True, pillars=[*PILLARS, "robustness"], detailed=True)
    write_leaderboard([store], store, allow_adult=True)
    return store / "leaderboard.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Call]:
    """Sends a command of the WebDriver protocol to a browser of its own."""
    with subprocess.Popen(
        [str(DRIVER), "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as driver:
        try:
            port = next(
                found[1] for line in driver.stdout or () if (found := re.search(r"successfully on port (\d+)", line))
            )
            capabilities = {"goog:chromeOptions": OPTIONS, "goog:loggingPrefs": {"browser": "ALL"}}
            session = _call(port, "", {"capabilities": {"alwaysMatch": capabilities}})["sessionId"]
            yield lambda command, **data: _call(port, f"/{session}/{command}", data)
            _call(port, f"/{session}", None, "DELETE")
        finally:
            driver.terminate()


def _call(port: str, path: str, data: Any, method: str = "POST") -> Any:
    content = None if data is None else json.dumps(data).encode()
    url = f"http://127.0.0.1:{port}/session{path}"
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        return json.load(answer)["value"]


@pytest.fixture
def run(browser: Call, page: Path) -> Iterator[Call]:
    """Runs a script in the page, which is fresh; afterwards nothing may have been logged, such as a refused request."""
    browser("goog/cdp/execute", cmd="Emulation.clearDeviceMetricsOverride", params={})
    browser("url", url="about:blank")
    browser("url", url=page.as_uri())
    # The driver may answer before the page is whole.
    end = time.monotonic() + 60
    while not browser("execute/sync", script=LOADED, args=[page.as_uri()]):
        assert time.monotonic() < end, "the page was not loaded within a minute"
        time.sleep(0.05)
    yield lambda script: browser("execute/sync", script=script, args=[])
    assert browser("se/log", type="browser") == []


LOADED = "return document.readyState === 'complete' && location.href === arguments[0]"
ORDER = "[...document.querySelector('.board').tBodies[{}].rows].map(row => row.querySelector('.name').dataset.key)"


def test_columns_sort_both_ways_below_the_baselines(run: Call) -> None:
    click = "document.querySelectorAll('.board thead button')[{}].click(); return " + ORDER
    assert run(f"return {ORDER.format(1)}") == ["uce", "rece", "noise"]
    assert run(click.format(3, 1)) == ["noise", "rece", "uce"]
    assert run(click.format(3, 1)) == ["uce", "rece", "noise"]
    assert run("return document.querySelector('[aria-sort=ascending]').textContent") == "erasure"
    assert run("return document.querySelectorAll('[aria-sort=descending]').length") == 0
    assert run(click.format(1, 1)) == ["noise", "rece", "uce"]
    assert run(click.format(1, 0)) == ["unedited", "retrained"]
    assert "Sorted by row" in run("return document.getElementById('said').textContent")


def test_attacks_sort_by_success_the_lowest_first(run: Call) -> None:
    table = "document.querySelector('[aria-label=\"first@1, all, attacks\"] table')"
    keys = f"[...{table}.tBodies[1].rows].map(row => +row.querySelector('[data-label=p4d]').dataset.key)"
    click = f"{table}.querySelectorAll('thead button')[1].click(); return {keys}"
    before, after = run(f"return {keys}"), run(click)
    assert after == sorted(before)
    assert after != before
    assert run(click) == sorted(before, reverse=True)
    assert run("return document.getElementById('said').textContent").startswith("Sorted by p4d, descending")


def test_attacks_stand_open_and_their_finds_folded(run: Call) -> None:
    seen = "return [...document.querySelectorAll('#task-0 details')].map(one => [one.firstChild.textContent, one.open])"
    assert run(seen) == [
        ["Attacks", True],
        ["By concept", False],
        ["Shares behind the scores", False],
        ["Over-erasure", False],
        ["Pictures that attacks found", False],
        ["Pictures before and after: star", True],
        ["Pictures before and after: zorblat", False],
    ]


def test_tasks_can_be_filtered(run: Call) -> None:
    choose = "task.value = '{}'; task.dispatchEvent(new Event('change')); "
    state = "return [...document.querySelectorAll('.task')].map(section => section.checkVisibility())"
    assert run(state) == [True, True]
    assert run(choose.format("task-1") + state) == [False, True]
    assert run("return document.getElementById('said').textContent") == "Showing second@1."
    assert run(choose.format("") + state) == [True, True]


def test_everything_fits_the_width_of_a_phone(run: Call, browser: Call) -> None:
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=metrics)
    run("document.querySelectorAll('details').forEach(some => some.open = true)")
    assert run("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    right = (
        "Math.max(...[...document.querySelectorAll('td, th, button, img')].map(e => e.getBoundingClientRect().right))"
    )
    assert 300 < run(f"return {right}") <= 390


def test_adult_pictures_are_hidden_and_blurred_until_asked_for(run: Call) -> None:
    image = "document.querySelector('.adult img')"
    seen = f"return [{image}.checkVisibility(), getComputedStyle({image}).filter]"
    assert run(seen) == [False, "blur(16px)"]
    assert run(f"document.querySelector('.adult').open = true; {seen}") == [True, "blur(16px)"]
    assert run(f"document.querySelector('.sharp').click(); {seen}") == [True, "none"]


def test_dark_mode_follows_the_system_and_text_is_legible_in_both(run: Call, browser: Call) -> None:
    body, quiet = "getComputedStyle(document.body)", "getComputedStyle(document.querySelector('.quiet'))"
    for scheme, dark in (("light", False), ("dark", True)):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser("goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params={"features": features})
        paper, *inks = run(f"return [{body}.backgroundColor, {body}.color, {quiet}.color]")
        assert (_luminance(paper) < 0.5) == dark
        for ink in inks:
            low, high = sorted((_luminance(paper), _luminance(ink)))
            assert (high + 0.05) / (low + 0.05) > 4.5


def _luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
