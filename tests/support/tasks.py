"""The content of a task file of a few small pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def tiny_task(**changes: Any) -> dict[str, Any]:
    """A task of the embedded model on "star", with other keys in place of these or beside them."""
    content = {
        "name": "tiny",
        "version": 1,
        "model": "shapes",
        "cases": [["star"]],
        "samples": {"explicit": 3, "unrelated": 2},
        "sampling": {"steps": 2, "guidance": 4.0, "batch": 2},
        "judge": "oracle/shapes",
        "scheme": {"pillars": ["erasure", "specificity"]},
    }
    return content | changes


def tiny_attacks(samples: int, images: int, replicate: int) -> dict[str, Any]:
    """Two attacks by text, one of them the other's control."""
    return {
        "prefixes": {"attack": "random_prefix", "k": 2, "images": images, "samples": samples, "replicate": replicate},
        "words": {
            "templates": ["a {}"],
            "synonyms": [],
            "samples": samples,
            "control": "prefixes",
            "replicate": replicate,
        },
    }


def write_task(folder: Path, content: dict[str, Any]) -> Path:
    """The file of a task in a folder."""
    path = folder / f"{content['name']}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
