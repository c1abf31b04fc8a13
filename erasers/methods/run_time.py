"""What methods share that change no weight: what they read of prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from erasers.diffusion.supported import check_clip_skip
from erasers.eraser import Eraser
from erasers.options import require_least


@dataclass(frozen=True, kw_only=True)
class RunTime(Eraser):
    """A method whose patch runs while pictures are drawn, and is fitted from the text of prompts.

    Args:
        aliases: The concept's aliases are among its names.
        max_sequence_length: Tokens that a prompt is padded or cut to, where the pipeline takes that; None: its default.
        clip_skip: Last layers of CLIP that are left out, where pictures are drawn with the pipeline's `clip_skip`.
    """

    hooks: ClassVar[bool] = True

    aliases: bool = True
    max_sequence_length: int | None = None
    clip_skip: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, max_sequence_length=1, clip_skip=0)

    def check_pipe(self, pipe: Any) -> None:
        """See `Eraser.check_pipe`."""
        check_clip_skip(pipe, self.clip_skip)
