"""The model of a command and what it runs on: options, devices, dtypes, and loading."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, fields
from typing import Any

from erasers.cli import threads
from erasers.cli.console import show_warning
from erasers.cli.options import DEFAULT_MODEL, Config, Device, Dtype, Model, Revision, Variant
from erasers.cli.words import suggest

DTYPES = ("auto", "float32", "float16", "bfloat16")
_DEVICE = re.compile(r"(auto|cpu|mps|(cuda|xpu)(:\d+)?)")


@dataclass(frozen=True)
class Hardware:
    """What a model runs on, and in which precision."""

    device: Device = "auto"
    dtype: Dtype = "auto"

    def check(self) -> None:
        """Refuse names that torch does not know, before it is loaded.

        Raises:
            ValueError: Such a name.
        """
        if not _DEVICE.fullmatch(self.device):
            raise ValueError(f"unknown device {self.device!r}; expected auto, cpu, mps, cuda or cuda:N, xpu or xpu:N")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}{suggest(self.dtype, DTYPES)}; expected {', '.join(DTYPES)}")


@dataclass(frozen=True)
class ModelOptions:
    """A model, and what says how it is loaded."""

    model: Model = DEFAULT_MODEL
    variant: Variant = None
    revision: Revision = None
    config: Config = None

    def load(self, hardware: Hardware, *, gradients: bool = False, bare: bool = False) -> Any:
        """The pipeline; libraries say nothing while it loads and afterwards.

        Args:
            hardware: What it will run on.
            gradients: Whether gradients will be taken.
            bare: Without its weights, on the meta device.

        Raises:
            ValueError: No such device.
            ModelNotFound: No such model.
        """
        from erasers.pipeline import load_pipeline

        _silence()
        device = pick_device(hardware.device)
        dtype = pick_dtype(hardware.dtype, device, gradients=gradients)
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "model"}
        options = {name: value for name, value in given.items() if value is not None}
        pipe = load_pipeline(self.model, dtype=dtype, device="meta" if bare else device, **options)
        if not bare:
            threads.suit(pipe)
        return pipe


def pick_device(device: str) -> str:
    """The device to use; `auto` is the first accelerator there is.

    Raises:
        ValueError: This machine has no such device.
    """
    import torch

    present = [name for name in ("cuda", "xpu", "mps") if getattr(torch, name).is_available()]
    if device == "auto":
        return present[0] if present else "cpu"
    kind, _, index = device.partition(":")
    count = getattr(torch, kind).device_count() if kind in present else 0
    if kind != "cpu" and (kind not in present or int(index or 0) >= count):
        raise ValueError(f"no device {device!r} on this machine; it has {', '.join(['cpu', *present])}")
    return device


def pick_dtype(dtype: str, device: str, *, gradients: bool = False) -> str:
    """The dtype to load a model in; `auto` is half precision on an accelerator and float32 on a CPU.

    Where gradients are taken, that is bfloat16 on a device that computes in it, for float16 has no room for small ones.
    """
    if dtype != "auto":
        return dtype
    if device == "cpu":
        return "float32"
    return "bfloat16" if gradients and _has_bfloat16(device) else "float16"


def _has_bfloat16(device: str) -> bool:
    import torch

    kind = device.partition(":")[0]
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind == "xpu" and bool(torch.xpu.is_bf16_supported())


def _silence() -> None:
    """Errors of the libraries only, and warnings of this one as one line each."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module=r"erasers\.")
    warnings.showwarning = show_warning
