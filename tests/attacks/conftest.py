"""Fixtures of the tests of attacks: tiny pipelines of the families behind Stable Diffusion 1 and 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.families.all import FAMILIES


@pytest.fixture(params=["sdxl", "sd3", "flux"])
def modern(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A tiny pipeline of a family with several text encoders."""
    return small(request.param, tmp_path)


@pytest.fixture(params=["sd3", "flux"])
def flow(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A tiny pipeline that follows a flow."""
    return small(request.param, tmp_path)


def small(family: str, folder: Path) -> Any:
    """A pipeline that draws 16 by 16 pixels."""
    pipe = FAMILIES[family].build(folder)
    if family == "flux":
        pipe.default_sample_size = 8
    pipe.set_progress_bar_config(disable=True)
    return pipe
