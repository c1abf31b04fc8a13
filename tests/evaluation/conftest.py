"""A browser for the pages that evaluation writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.browser import Call, open_browser, open_page


@pytest.fixture(scope="module")
def browser() -> Iterator[Call]:
    with open_browser() as call:
        yield call


@pytest.fixture
def run(browser: Call, page: Path) -> Iterator[Call]:
    """Runs scripts in the module's `page`."""
    with open_page(browser, page) as script:
        yield script
