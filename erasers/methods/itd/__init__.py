"""ItD, on the features of sparse autoencoders."""

from erasers.methods.itd.eraser import ItD

__all__ = ["ItD"]
