"""What a tiny pipeline of a family offers to the tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Family:
    """A family of pipelines.

    Args:
        build: Makes the pipeline, of random weights; files it needs go below the folder.
        options: Arguments of a small quick call.
    """

    build: Callable[[Path], Any]
    options: Mapping[str, Any] = field(default_factory=dict)


def draw(pipe: Any, prompt: str | None, options: Mapping[str, Any], **more: Any) -> torch.Tensor:
    """What a call of the pipeline gives, as one tensor, from fixed noise."""
    generator = torch.Generator().manual_seed(3)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        output = pipe(prompt=prompt, generator=generator, **{**options, **more})
    found = getattr(output, "images", None)
    found = getattr(output, "frames", None) if found is None else found
    return torch.as_tensor(output[0] if found is None else found)
