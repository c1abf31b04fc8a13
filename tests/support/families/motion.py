"""AnimateDiff: the tiny Stable Diffusion 1, with modules that go from frame to frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from support.families.base import Family
from support.tiny import make_pipe


def make_motion_adapter() -> Any:
    """Its modules change the frames: those that start at zero are drawn."""
    torch.manual_seed(4)
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
        use_motion_mid_block=False,
    )
    for parameter in adapter.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return adapter.eval()


def build_animatediff(folder: Path) -> Any:
    parts = make_pipe("sd1", folder).components
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    return diffusers.AnimateDiffPipeline(**{name: parts[name] for name in names}, motion_adapter=make_motion_adapter())


FAMILIES = {
    "animatediff": Family(
        build_animatediff, {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent", "num_frames": 2}
    )
}
