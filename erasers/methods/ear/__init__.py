"""EAR, on models that draw a picture token by token."""

from erasers.methods.ear.eraser import EAR

__all__ = ["EAR"]
