"""What an attack spends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """What an attack may spend, or has spent, on one prompt; a batch of four counts four.

    Args:
        gradients: Backward passes through the denoiser.
        encodes: Texts that went through a text encoder, besides those that were drawn.
        images: Pictures drawn and judged, the plain prompt's included.
    """

    gradients: int = 0
    encodes: int = 0
    images: int = 1


@dataclass(frozen=True)
class Preparation:
    """What `Attack.prepare` takes, all of it with the unedited model.

    Args:
        images: Pictures drawn.
        passes: Other passes of the denoiser, without gradients.
        gradients: Backward passes through the denoiser.
        encodes: Texts that go through a text encoder.
    """

    images: int = 0
    passes: int = 0
    gradients: int = 0
    encodes: int = 0
