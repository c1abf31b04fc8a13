"""Several processes of one command, as `accelerate launch` and `torchrun` start them."""

from __future__ import annotations

import atexit
import os
from dataclasses import replace

from erasers.cli import model
from erasers.cli.model import Hardware


def join(hardware: Hardware) -> bool:
    """Meet the other processes of a training; whether this is the one that speaks and writes.

    Raises:
        ValueError: Numbers in the environment that make no sense.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from accelerate import PartialState

    from erasers.processes import Share

    share = Share.of_environment()
    state = PartialState(cpu=_device(hardware) == "cpu")
    atexit.register(state.destroy_process_group)
    return share.rank == 0


def own(hardware: Hardware) -> Hardware:
    """Of several processes on one machine, each has an accelerator of its own."""
    local, device = os.environ.get("LOCAL_RANK", ""), _device(hardware)
    if hardware.device == "auto" and local.isdigit() and device in ("cuda", "xpu"):
        device = f"{device}:{local}"
    return replace(hardware, device=device)


def _device(hardware: Hardware) -> str:
    return model.pick_device("auto") if hardware.device == "auto" else hardware.device
