"""Robust ablation."""

from erasers.methods.robust_ablation.eraser import RobustAblation

__all__ = ["RobustAblation"]
