"""Several processes of one command, as `accelerate launch` and `torchrun` start them."""

from __future__ import annotations

import atexit
import os

from erasers.cli import input as cli_input


def join(device: str) -> bool:
    """Meet the other processes of a training; whether this is the one that speaks and writes.

    Raises:
        ValueError: Numbers in the environment that make no sense.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from accelerate import PartialState

    from erasers.processes import Share

    share = Share.of_environment()
    state = PartialState(cpu=(cli_input.pick_device(device) if device == "auto" else device) == "cpu")
    atexit.register(state.destroy_process_group)
    return share.rank == 0


def own_device(device: str) -> str:
    """Of several processes on one machine, each has an accelerator of its own."""
    local = os.environ.get("LOCAL_RANK", "")
    found = cli_input.pick_device(device) if device == "auto" else device
    return f"{found}:{local}" if device == "auto" and local.isdigit() and found in ("cuda", "xpu") else found
