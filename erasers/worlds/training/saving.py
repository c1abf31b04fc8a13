"""A trained model as plain folders of diffusers, with its retrained denoisers beside it, or of transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


def save_pipeline(pipe: Any, folder: Path) -> None:
    """Write a pipeline in half precision, whole or not at all, so that its parts load in one dtype."""
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    pipe.save_pretrained(temporary, safe_serialization=True)
    for config in sorted(temporary.glob("*/config.json")):
        # diffusers loads fp16 weights as float32, transformers as fp16: the parts of a pipeline must agree.
        transformers = "architectures" in json.loads(config.read_text())
        _rewrite(config, **({"dtype": "float32"} if transformers else {}))
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def save_references(out: Path, denoiser: type[Any], name: str) -> None:
    """Write every `out/<name>-without-<word>` to `out/reference`, in half precision.

    Args:
        out: Folder of a training.
        denoiser: Class of the denoisers.
        name: Component that they stand in for.
    """
    for folder in sorted(out.glob(f"{name}-without-*")):
        reference = out / "reference" / folder.name
        denoiser.from_pretrained(folder).half().save_pretrained(reference)
        _rewrite(reference / "config.json")


def save_model(model: Any, processor: Any, folder: Path) -> None:
    """Write a model of transformers with its processor, in half precision, whole or not at all; it loads in float32."""
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    model.half().save_pretrained(temporary)
    processor.save_pretrained(temporary)
    _rewrite(temporary / "config.json", dtype="float32")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _rewrite(config: Path, **changes: str) -> None:
    """Change entries of a configuration, and drop the folder that it was loaded from."""
    entries = json.loads(config.read_text()) | changes
    entries.pop("_name_or_path", None)
    config.write_text(json.dumps(entries, indent=2) + "\n")
