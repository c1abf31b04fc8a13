"""`shapes`: a small Stable Diffusion, trained from scratch on drawn pictures, with an exact judge."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
"""The embedded model, a plain diffusers folder."""

CLIP_DIR = Path(__file__).parent / "clip"
"""A small open_clip model of the same world: `open_clip.create_model_and_transforms(f"local-dir:{CLIP_DIR}")`."""
