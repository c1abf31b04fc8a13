"""`shapes-sd3`: a small Stable Diffusion 3, trained from scratch on the pictures of `shapes`, whose judge it shares."""

from __future__ import annotations

from pathlib import Path

from erasers.worlds.shapes import Shapes


class ShapesSD3(Shapes):
    """The words and pictures of `shapes`, drawn along a flow from two text encoders and pooled text."""

    name = "shapes-sd3"
    folder = Path(__file__).parent / "model"
    steps, guidance, batch = 20, 4.0, 25
    tokens = 1
    seconds = 0.076 / 40
    sae = Path(__file__).parent / "sae"
    denoiser_block = None
    ip_adapter = None
    unrecorded = None
