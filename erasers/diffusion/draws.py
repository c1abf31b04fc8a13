"""Random draws: all of them where their generator is, so that they are the same for every device of the model."""

from __future__ import annotations

import torch


def gaussian(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noise of the shape, type and device of a tensor."""
    noise = torch.randn(like.shape, generator=generator, device=generator.device)
    return noise.to(like.device, like.dtype)


def picks(below: int, shape: int | tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Random whole numbers below `below`, so many or of that shape, on the CPU."""
    shape = (shape,) if isinstance(shape, int) else shape
    return torch.randint(below, shape, generator=generator, device=generator.device).cpu()


def chances(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Random numbers from 0 to 1, on the CPU."""
    return torch.rand(shape, generator=generator, device=generator.device).cpu()


def seeds(count: int, generator: torch.Generator) -> list[int]:
    """Seeds of other generators."""
    drawn: list[int] = picks(2**31, count, generator).tolist()
    return drawn
