"""How the first results of this world were drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNRECORDED: Mapping[str, Any] = {
    "scheduler": {
        "class": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "trained_betas": None,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": "epsilon",
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "clip_sample_range": 1.0,
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "rescale_betas_zero_snr": False,
    },
    "dtype": "float32",
    "libraries": ["0.42", "2.13"],
}
"""The setting of all rows of format 1, which do not record it."""
