"""The version of the installed package."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version


@lru_cache(maxsize=1)
def library_version() -> str:
    """Version from the package metadata, or `0+unknown` when run from a folder that was never installed."""
    try:
        return version("erasers")
    except PackageNotFoundError:
        return "0+unknown"
