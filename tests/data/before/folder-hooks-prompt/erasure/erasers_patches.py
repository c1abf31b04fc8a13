"""The patches of this folder, read by the library erasers."""

from erasers.dropin import Erasure

__all__ = ["Erasure"]
