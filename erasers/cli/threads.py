"""How many threads of a CPU the command uses and how they wait, where the user does not say."""

from __future__ import annotations

import os
from typing import Any

_NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT")
_WAITS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_SMALL, _FEW = 20_000_000, 2
"""Parameters of a small denoiser, and how many threads its layers can feed."""


def let_idle_threads_sleep() -> None:
    """Threads that wait for others give their core away; a setting of the user stays. Call it before torch is loaded.

    By default they spin, and on a busy machine keep the core from the thread that they wait for. On a quiet one
    sleeping costs two fifths more time (`benchmarks/threads.py`).
    """
    if not any(name in os.environ for name in _WAITS):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def suit(pipe: Any) -> None:
    """Few threads for a small model on a CPU; larger ones, and a number that the user chose, stay as they are."""
    import torch

    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if denoiser is None or pipe.device.type != "cpu" or any(name in os.environ for name in _NUMBERS):
        return
    if sum(parameter.numel() for parameter in denoiser.parameters()) < _SMALL:
        torch.set_num_threads(min(_FEW, torch.get_num_threads()))
