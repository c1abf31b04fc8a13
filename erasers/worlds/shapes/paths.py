"""Where the files of `shapes` lie."""

from __future__ import annotations

from pathlib import Path

HOME = Path(__file__).parent

MODEL_DIR = HOME / "model"
"""The embedded model, a plain diffusers folder."""

CLIP_DIR = HOME / "clip"
"""A small open_clip model of the same world: `open_clip.create_model_and_transforms(f"local-dir:{CLIP_DIR}")`."""

SAE_DIR = HOME / "sae"
"""Sparse autoencoders of the model."""

ADAPTER_DIR = HOME / "ip_adapter"
"""An IP-Adapter of the model, which diffusers loads: a picture as a prompt."""

JUDGE_FILE = HOME / "judge.safetensors"
"""Weights of the judge."""
