"""DoCo."""

from erasers.methods.doco.eraser import DoCo

__all__ = ["DoCo"]
