"""`erase sae` and `erase explain`: sparse autoencoders, and what their features say."""

from erasers.cli.sae.app import sae
from erasers.cli.sae.explaining import explain

__all__ = ["explain", "sae"]
