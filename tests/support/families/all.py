"""Every family that the tests know, by name."""

from __future__ import annotations

from functools import partial

from support.families import llm, motion, t5
from support.families.base import Family
from support.tiny import FAMILIES as UNETS
from support.tiny import make_pipe

_CALL = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}

FAMILIES: dict[str, Family] = {
    **{name: Family(partial(make_pipe, name), _CALL) for name in UNETS},
    **t5.FAMILIES,
    **llm.FAMILIES,
    **motion.FAMILIES,
}
