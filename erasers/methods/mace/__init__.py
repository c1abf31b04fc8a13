"""MACE: many concepts at once, by closed forms around small trained additions that take their attention away."""

from erasers.methods.mace.eraser import MACE

__all__ = ["MACE"]
