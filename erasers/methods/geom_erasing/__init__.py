"""Geom-Erasing: concepts that no prompt names are told by where they are."""

from erasers.methods.geom_erasing.eraser import GeomErasing

__all__ = ["GeomErasing"]
