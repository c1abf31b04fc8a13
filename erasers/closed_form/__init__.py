"""Edits of weights as solutions of least squares."""
