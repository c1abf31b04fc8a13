"""Measuring an erasure: scores with intervals, and the before/after report."""
