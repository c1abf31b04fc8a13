"""A process that is killed on its way."""

from __future__ import annotations

from collections.abc import Callable


def killed_after(total: int) -> Callable[[int], None]:
    """Told of progress, it raises `InterruptedError` once so much is done."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if done >= total:
            raise InterruptedError

    return advance
