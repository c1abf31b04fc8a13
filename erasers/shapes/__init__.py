"""`shapes`: a small Stable Diffusion, trained from scratch on drawn pictures, with an exact judge."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
"""The embedded model, a plain diffusers folder."""
