"""The token that all prompts start with: no gradient passes through what the denoiser makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.table import denoisers_of
from erasers.training.layers import crosses, denoiser_layers


def starts_alike(condition: Condition) -> bool:
    """Whether all prompts start with the same state, that of a token before them."""
    return bool((condition.states[:, 0] == condition.states[:1, 0]).all())


@contextmanager
def start_token_held(pipe: Any) -> Iterator[None]:
    """Inside, no gradient passes through the text's keys and values of the first token, where they have layers."""

    def held(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)

    apart = crosses(pipe)
    wanted = denoiser_layers("x-strict", crosses=apart)
    with ExitStack() as handles:
        for denoiser in denoisers_of(pipe).values():
            for path, module in denoiser.named_modules():
                plain = path.removesuffix(".base_layer")
                if wanted(module, plain) and (apart or plain.endswith(("add_k_proj", "add_v_proj"))):
                    handles.callback(module.register_forward_hook(held).remove)
        yield
