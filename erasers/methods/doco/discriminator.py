"""A discriminator of latents: from which of two sources predicted pictures come."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

_LAYERS = 4
_GROUPS = 8
_LEAK = 0.2


class Discriminator(nn.Module):
    """PatchGAN (Isola et al., arXiv 1611.07004): logits `[n, 1, h', w']`, one a patch of latents `[n, c, h, w]`.

    Of latents of films `[n, c, f, h, w]` it judges each frame: `[n f, 1, h', w']`.

    Four layers, each twice as wide as the one before, halve the sides as long as these are at least 8 and keep them
    afterwards; a fifth gives the logits. With `width` 64 and sides of 64 these are DoCo's own layers, but for group
    norms in place of batch norms: the two sources come in batches of their own, and a norm of each batch would hide
    what tells them apart.

    Args:
        shape: (c, ..., h, w) of the latents.
        width: Of the first layer; a multiple of 4.
        generator: Draws the weights.
    """

    def __init__(self, shape: tuple[int, ...], width: int, generator: torch.Generator) -> None:
        super().__init__()
        channels, side = shape[0], min(shape[-2:])
        parts: list[nn.Module] = []
        with torch.device("meta"):
            for wide in (width * 2**number for number in range(_LAYERS)):
                halves = side >= 8
                parts.append(nn.Conv2d(channels, wide, 4 if halves else 3, 2 if halves else 1, padding=1))
                parts += [nn.GroupNorm(_GROUPS, wide)] if wide > width else []
                parts.append(nn.LeakyReLU(_LEAK))
                channels, side = wide, side // 2 if halves else side
            parts.append(nn.Conv2d(channels, 1, 4 if side >= 4 else 3, padding=1))
            self.layers = nn.Sequential(*parts)
        self.to_empty(device=generator.device)
        self._draw(generator)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """How surely each patch is the student's, in float32 whatever the precision around it."""
        with torch.autocast(latents.device.type, enabled=False):
            frames = latents.movedim(1, -3).flatten(0, -4)
            return torch.as_tensor(self.layers(frames.float()))

    def _draw(self, generator: torch.Generator) -> None:
        for module in self.layers:
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, _LEAK, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()


def telling_loss(anchor: torch.Tensor, target: torch.Tensor, *, leak: bool = False) -> torch.Tensor:
    """L_D from logits: BCE(D(x0 of the anchor), 0) + BCE(D(x0 of the target), 1).

    Args:
        anchor: Logits of the frozen model's pictures.
        target: Logits of the student's.
        leak: Add BCE(D(x0 of the target), 0), whose gradient the official code leaves in the discriminator: the
            target's label is then a half.
    """
    loss = _cross_entropy(anchor, 0.0) + _cross_entropy(target, 1.0)
    return loss + fooling_loss(target) if leak else loss


def fooling_loss(target: torch.Tensor) -> torch.Tensor:
    """L_adv from logits of the student's pictures: BCE(D(x0 of the target), 0)."""
    return _cross_entropy(target, 0.0)


def _cross_entropy(logits: torch.Tensor, label: float) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
