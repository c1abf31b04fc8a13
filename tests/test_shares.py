"""Which of several processes does what."""

from __future__ import annotations

import pytest

from erasers.processes import Share


def test_shares_cover_everything_once() -> None:
    items = list(range(11))
    for world in (1, 2, 3, 20):
        parts = [Share(rank, world).split(items) for rank in range(world)]
        assert sorted(item for mine, _ in parts for item in mine) == items
        assert all(sorted(mine + others) == items for mine, others in parts)
    assert Share(0, 2).split(items)[1][0] == 9


def test_the_environment_says_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Share.of_environment() == Share(0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert Share.of_environment() == Share(3, 4)
    for wrong in ("4", "-1", "x", ""):
        monkeypatch.setenv("RANK", wrong)
        with pytest.raises(ValueError, match="expected RANK below WORLD_SIZE"):
            Share.of_environment()
