"""What the denoiser reads of a prompt in shapes alone: the pipeline encodes it with text encoders that answer zeros."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.table import adaptor_of, encoders_of

_PROMPT = "a picture of a red star"
"""Most families fill up to a length of their own."""


@dataclass(frozen=True)
class Blank:
    """A prompt in shapes.

    Args:
        condition: What the denoiser reads of it, on the CPU.
        tokens: How many tokens each text encoder reads, by the name of its component.
    """

    condition: Condition
    tokens: Mapping[str, int]


@torch.no_grad()
def blank(pipe: Any) -> Blank:
    """What becomes of a prompt, by the pipeline's own `encode_prompt`, whose text encoders do not run.

    Args:
        pipe: A pipeline of a family in `erasers.diffusion.adaptors.table`; its weights may be on the meta device.
    """
    stand_in = copy.copy(pipe)
    for name, module in pipe.components.items():
        if isinstance(module, nn.Module):
            stand_in.__dict__[name] = _Zeros(module)
    condition = adaptor_of(pipe).encode(stand_in, [_PROMPT])
    tokens = {name: getattr(stand_in, name).tokens for name in encoders_of(pipe)}
    return Blank(condition, {name: count for name, count in tokens.items() if count})


class _Zeros(nn.Module):
    """Stands for a text encoder, or any other module that is asked for its configuration alone."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.config, self.dtype, self.device = module.config, module.dtype, torch.device("cpu")
        self.tokens = 0
        self._projects = type(module).__name__.endswith("WithProjection")

    def forward(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> Any:
        config = self.config.get_text_config()
        self.tokens = input_ids.shape[-1]
        states = torch.zeros(*input_ids.shape, config.hidden_size, dtype=self.dtype)
        pooled = states[:, 0]
        if self._projects:
            pooled = torch.zeros(len(states), config.projection_dim, dtype=self.dtype)
        return _Output(pooled if self._projects else states, states, (states,) * (config.num_hidden_layers + 1), pooled)


class _Output(NamedTuple):
    """What encoders of transformers return, under all the names by which pipelines ask for it."""

    first: torch.Tensor
    last_hidden_state: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...]
    pooler_output: torch.Tensor

    @property
    def text_embeds(self) -> torch.Tensor:
        """The first output of encoders with a projection."""
        return self.first
