"""Threads: two at most for a small model on a CPU, and a setting of the user's stays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from erasers.cli import threads

SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of threads that are set, in an environment without settings."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    numbers: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    return numbers


@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_a_small_model_has_two(family: str, chosen: list[int], pipes: Callable[[str], Any]) -> None:
    threads.suit(pipes(family))
    assert chosen == [2]


def test_one_core_stays_one(chosen: list[int], pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    threads.suit(pipe)
    assert chosen == [1]


@pytest.mark.parametrize("name", SETTINGS[:3])
def test_a_number_of_the_user_stays(name: str, chosen: list[int], pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "2")
    threads.suit(pipe)
    assert chosen == []


def test_a_large_model_keeps_all(chosen: list[int], pipe: Any) -> None:
    with torch.device("meta"):
        pipe.unet.extra = torch.nn.Linear(10_000, 10_000)
    threads.suit(pipe)
    assert chosen == []


@pytest.mark.parametrize(
    ("given", "policy"),
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "7"}, "None")],
)
def test_threads_that_wait_sleep_unless_the_user_says_else(given: dict[str, str], policy: str) -> None:
    code = (
        "import sys, erasers.cli.app as app\n"
        "app.run = lambda arguments: print(__import__('os').environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)\n"
        "app.main()"
    )
    own = {name: text for name, text in os.environ.items() if name not in SETTINGS}
    done = subprocess.run([sys.executable, "-c", code], env=own | given, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [policy, "False"]
