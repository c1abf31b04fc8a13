"""Receler: adapters behind cross-attention, trained against vectors in the conditioning."""

from erasers.methods.receler.eraser import Receler

__all__ = ["Receler"]
