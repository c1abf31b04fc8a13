"""Verdicts made into scores with intervals, and their files."""
