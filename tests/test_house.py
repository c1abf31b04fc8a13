"""The habits of the house: the same commands as the pre-commit hooks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import REPOSITORY

BIN = Path(sys.executable).parent
HOOKS = {
    hook["id"]: hook["entry"].split()
    for repo in yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repo["hooks"]
}


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_passes(hook: str) -> None:
    program, *arguments = HOOKS[hook]
    found = next(str(path) for path in (BIN / program, BIN / f"{program}.exe", Path(program)) if path.exists())
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(
        [found, *arguments], cwd=REPOSITORY, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_metadata_is_in_setup_cfg_alone() -> None:
    # A [project] table would make setuptools drop the metadata of setup.cfg without a word.
    assert "\n[project]" not in (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
