"""Task files of a few small pictures, and a run of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
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


def run_methods(content: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """The file of a task and the results of two methods on it, both in a folder; the command draws into no other."""
    from erasers.cli.app import run

    task, out = write_task(folder, content), folder / "out"
    methods = ["--method", "uce", "--method", "rece"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ERASERS_CACHE", str(folder / "cache"))
        assert run(["bench", "run", str(task), *methods, "--out", str(out), "--device", "cpu"]) == 0
    return task, out
