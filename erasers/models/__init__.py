"""Pipelines of diffusers: their families, their parts, and how they are loaded."""
