"""How the pictures of a row were drawn, and the keys that follow: all that a picture depends on is in its key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from erasers.evaluation.store import key_of

if TYPE_CHECKING:
    from PIL import Image

    from erasers.evaluation.tasks.task import Sampling

SETTING = ("scheduler", "dtype", "libraries")
"""What is recorded of a row and is part of the keys of its pictures."""


def setting_of(pipe: Any) -> dict[str, Any]:
    """Scheduler, dtype, and minor versions of diffusers and torch."""
    import diffusers
    import torch

    scheduler = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    return {
        "scheduler": {"class": type(pipe.scheduler).__name__, **scheduler},
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "libraries": [".".join(version.split(".")[:2]) for version in (diffusers.__version__, torch.__version__)],
    }


def record_of(pipe: Any) -> dict[str, Any]:
    """The setting, and what else may turn the last bit of a picture: whole versions and the kind of device."""
    import diffusers
    import torch
    import transformers

    versions = {module.__name__: str(module.__version__) for module in (diffusers, torch, transformers)}
    return setting_of(pipe) | {"versions": versions, "device": pipe.device.type}


def picture_facts(model: str, patch: str, sampling: Sampling, setting: Mapping[str, Any]) -> dict[str, Any]:
    """What pictures depend on beside their prompts and seeds.

    Args:
        model: Fingerprint of the weights, patches aside.
        patch: Digest of the patch; "" without one.
        sampling: Of the task.
        setting: The keys of `SETTING`.
    """
    facts: dict[str, Any] = {"model": model, "patch": patch, "strength": 1.0}
    facts |= {"steps": sampling.steps, "guidance": sampling.guidance, "size": sampling.size}
    facts |= {} if sampling.tokens is None else {"tokens": sampling.tokens}
    return facts | {key: setting[key] for key in SETTING}


def picture_key(text: str, seed: int, facts: Mapping[str, Any]) -> str:
    """The key of a picture in the store."""
    return key_of({"text": text, "seed": seed, **facts})


def pixel_hash(image: Image.Image) -> str:
    """sha256 of the size and the RGB values of a picture."""
    rgb = image.convert("RGB")
    return hashlib.sha256(f"{rgb.width} x {rgb.height}\n".encode() + rgb.tobytes()).hexdigest()
