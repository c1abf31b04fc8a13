"""Trainings of worlds, cut to a few steps on a few pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from erasers.worlds.shapes.train import contrast, views


def shorten(patched: pytest.MonkeyPatch, *recipes: tuple[object, str]) -> None:
    """Two steps for each recipe, given as a module and a name in it; 64 pictures and eight texts at a time."""
    for module, name in recipes:
        usual = getattr(module, name)
        patched.setattr(module, name, replace(usual, steps=2, warmup=1, save_every=1, log_every=1))
    patched.setattr(views, "PICTURES", 64)
    patched.setattr(contrast, "BATCH", 8)
