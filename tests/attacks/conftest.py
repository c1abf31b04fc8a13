"""Fixtures of the tests of attacks: tiny pipelines of the families behind Stable Diffusion 1 and 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.attacking import small


@pytest.fixture(params=["sdxl", "sd3", "flux"])
def modern(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A tiny pipeline of a family with several text encoders."""
    return small(request.param, tmp_path)


@pytest.fixture(params=["sd3", "flux"])
def flow(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A tiny pipeline that follows a flow."""
    return small(request.param, tmp_path)
