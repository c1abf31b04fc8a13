"""How many threads of a CPU the command uses, where the user does not say."""

from __future__ import annotations

import os
from typing import Any

_OF_THE_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT")
_SMALL = 20_000_000
"""Parameters of a denoiser whose layers are done before a second thread has been woken."""


def let_idle_threads_sleep() -> None:
    """Threads that wait for others give their core away; a setting of the user stays. Call it before torch is loaded.

    They spin by default, and on a busy machine take from the thread that they wait for the core that it needs.
    """
    if not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def suit(pipe: Any) -> None:
    """One thread for a small model on a CPU; larger ones, and a number that the user chose, stay as they are."""
    import torch

    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if denoiser is None or pipe.device.type != "cpu" or any(name in os.environ for name in _OF_THE_USER):
        return
    if sum(parameter.numel() for parameter in denoiser.parameters()) < _SMALL:
        torch.set_num_threads(1)
