"""The page of the leaderboard in headless Chromium: it sorts, filters, fits a phone and logs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.browser import PHONE, Call, assert_legible, needs_browser
from support.made_results import PILLARS, write_results

from erasers.evaluation.leaderboard.write import write_leaderboard

pytestmark = [pytest.mark.full, needs_browser]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two tasks with every detail, one of adult content."""
    store = tmp_path_factory.mktemp("store")
    write_results(store, name="first", pillars=[*PILLARS, "robustness"], detailed=True)
    write_results(store, name="second", cases=["heart"], adult=True, detailed=True)
    write_leaderboard([store], store, allow_adult=True)
    return store / "leaderboard.html"


ORDER = "[...document.querySelector('.board').tBodies[{}].rows].map(row => row.querySelector('.name').dataset.key)"


def test_columns_sort_both_ways_below_the_baselines(run: Call) -> None:
    click = "document.querySelectorAll('.board thead button')[{}].click(); return " + ORDER
    assert run(f"return {ORDER.format(1)}") == ["rece", "uce", "noise"]
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


def test_a_row_that_is_pointed_at_shows_in_every_plot_and_table_of_its_task(run: Call) -> None:
    point = "document.querySelector('{}').dispatchEvent(new PointerEvent('pointerover', {{bubbles: true}})); "
    lit = "return [...document.querySelectorAll('.lit')].map(one => one.dataset.row + ' ' + one.closest('.task').id)"
    circle = "#task-0 .plots [data-row=rece] circle"
    found = run(point.format(circle) + lit)
    assert set(found) == {"rece task-0"}
    assert len(found) == run("return document.querySelectorAll('#task-0 [data-row=rece]').length") > 4
    assert run(point.format("h1") + lit) == []


def test_everything_fits_the_width_of_a_phone(run: Call, browser: Call) -> None:
    browser("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=PHONE)
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
        assert_legible(paper, inks, dark=dark)
