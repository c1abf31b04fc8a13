"""Progress: lines at intervals where there is no terminal, and a bar that is gone in the end on one."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from erasers import progress as showing
from erasers.progress import progress


class Clock:
    """A clock that stands still until it is set."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stands = Clock()
    monkeypatch.setattr(showing, "time", stands)
    return stands


def log() -> Any:
    return Console(file=io.StringIO(), width=80)


def test_a_log_has_a_line_at_the_start_and_then_one_every_half_minute(clock: Clock) -> None:
    console = log()
    with progress(console, "esd", 100) as advance:
        assert console.file.getvalue() == "esd: 100 to do\n"
        for _ in range(60):
            clock.now += 1
            advance(1, "loss 0.5")
    assert console.file.getvalue().splitlines() == [
        "esd: 100 to do",
        "esd: 30 of 100, loss 0.5, about 70 s left",
        "esd: 60 of 100, loss 0.5, about 40 s left",
    ]


def test_a_training_that_goes_on_is_as_fast_as_what_it_does_now(clock: Clock) -> None:
    console = log()
    with progress(console, "esd", 1000) as advance:
        advance(900)
        clock.now += 60
        advance(10)
    assert console.file.getvalue().splitlines()[1:] == ["esd: 910 of 1000, about 9 minutes left"]


def test_work_inside_of_other_work_keeps_to_its_intervals(clock: Clock) -> None:
    console = log()
    with progress(console, "esd", 2) as advance:
        for _ in range(2):
            with progress(console, "drawing", 20) as inner:
                for _ in range(20):
                    clock.now += 1
                    inner(1)
            advance(1)
    assert console.file.getvalue().splitlines() == ["esd: 2 to do", "drawing: 10 of 20, about 10 s left"]


def test_nothing_to_do_and_no_console_say_nothing() -> None:
    console = log()
    with progress(console, "erasing", 0), progress(None, "drawing", 10) as advance:
        advance(10)
    assert console.file.getvalue() == ""


def test_a_terminal_has_a_bar_that_is_gone_in_the_end() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with progress(console, "esd", 2) as advance:
        advance(2, "loss 0.5")
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "esd" in shown
    assert "to do" not in shown
    # The line is cleared in the end.
    assert shown.rstrip().endswith("\x1b[2K")
