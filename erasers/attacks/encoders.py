"""What attacks share that search with the embeddings of text encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from erasers.attacks.attack import Attack
from erasers.diffusion.attacked import attacked_encoders


@dataclass(frozen=True, kw_only=True)
class EncoderAttack(Attack):
    """An attack by the token embeddings of one text encoder, or of several at once.

    A token that it searches for has an embedding in each of them, and their gradients add up where it is a word.

    Args:
        encoders: Attributes of the pipeline's text encoders that are attacked; empty: all CLIP encoders, or the first
            encoder where none is of CLIP. Of FLUX.1 that is the pooled vector alone: its tokens come from
            `text_encoder_2`.
    """

    encoders: tuple[str, ...] = ()

    def attacked(self, pipe: Any) -> tuple[str, ...]:
        """See `Attack.attacked`."""
        return attacked_encoders(pipe, self.encoders)

    def config(self) -> dict[str, Any]:
        """See `Attack.config`; the default encoders go without saying."""
        return {key: value for key, value in super().config().items() if key != "encoders" or value}
