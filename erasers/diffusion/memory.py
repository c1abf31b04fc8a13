"""The memory of a device: how much there is, in words, and what is said when it is full."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from erasers.diffusion.adaptors.table import denoiser_of
from erasers.models.components import parameters_of

USED = 0.9
"""Share of the free memory of a device that is planned for; kernels and the allocator need the rest."""
_MEMORY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?([mgt])i?b?", re.ASCII)
_UNITS = {"m": 2**20, "g": 2**30, "t": 2**40}


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of torch says that a device is full."""
    told = any(words in str(error) for words in ("out of memory", "can't allocate memory"))
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and told)


@contextmanager
def memory_told() -> Iterator[None]:
    """Inside, a device that runs out of memory is an error that says what to set.

    Raises:
        ValueError: It did.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(
            "the device ran out of memory; set memory to less than it has, such as 16GB, or take "
            "gradient_checkpointing=true, a rank above 0, fewer trained weights or half precision"
        ) from error


def free_memory(pipe: Any, device: str | torch.device | None = None) -> int | None:
    """Bytes that a device has for more, and those of the pipeline on it; None on a CPU.

    Args:
        pipe: The pipeline.
        device: None: that of its denoiser.
    """
    device = denoiser_of(pipe).device if device is None else torch.device(device)
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    own = sum(parameter.nbytes for _, parameter in parameters_of(pipe) if parameter.device.type == "cuda")
    return own + int(USED * (torch.cuda.mem_get_info(device)[0] + cached))


def gigabytes(nbytes: float) -> str:
    """Bytes in GB of 2^30, or in MB of 2^20."""
    return f"{nbytes / 2**30:.3g} GB" if nbytes >= 2**30 else f"{nbytes / 2**20:.3g} MB"


def parse_memory(text: str) -> int:
    """Bytes of a text such as 24GB, 800MB or 24GiB, all of them powers of two.

    Raises:
        ValueError: Another text.
    """
    match = _MEMORY.fullmatch(text.strip().lower())
    nbytes = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < nbytes < 2**60:
        raise ValueError(f"expected memory such as 24GB or 800MB, got {text!r:.40}")
    return int(nbytes)
