"""Pages in headless Chromium, by the WebDriver protocol."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
OPTIONS = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"], "binary": CHROMIUM}
NO_SCRIPTS = {"prefs": {"profile.managed_default_content_settings.javascript": 2}}
LOADED = "return document.readyState === 'complete' && location.href === arguments[0]"
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}

needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")

Call = Callable[..., Any]


@contextmanager
def open_browser(**options: Any) -> Iterator[Call]:
    """Sends a command of the WebDriver protocol to a browser of its own."""
    with subprocess.Popen(
        [str(DRIVER), "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as driver:
        try:
            port = next(
                found[1] for line in driver.stdout or () if (found := re.search(r"successfully on port (\d+)", line))
            )
            capabilities = {"goog:chromeOptions": OPTIONS | options, "goog:loggingPrefs": {"browser": "ALL"}}
            session = _call(port, "", {"capabilities": {"alwaysMatch": capabilities}})["sessionId"]
            yield lambda command, **data: _call(port, f"/{session}/{command}", data)
            _call(port, f"/{session}", None, "DELETE")
        finally:
            driver.terminate()


@contextmanager
def open_page(browser: Call, page: Path) -> Iterator[Call]:
    """Runs scripts in the page, which is fresh; afterwards nothing may have been logged, such as a refused request."""
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


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def assert_legible(paper: str, inks: list[str], *, dark: bool) -> None:
    """The scheme is that which was asked for, and every text has a contrast above 4.5."""
    assert (luminance(paper) < 0.5) == dark
    for ink in inks:
        low, high = sorted((luminance(paper), luminance(ink)))
        assert (high + 0.05) / (low + 0.05) > 4.5


def _call(port: str, path: str, data: Any, method: str = "POST") -> Any:
    content = None if data is None else json.dumps(data).encode()
    url = f"http://127.0.0.1:{port}/session{path}"
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        return json.load(answer)["value"]
