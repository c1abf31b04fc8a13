"""Measurements of patches that look behind pictures of prompts: `erase measure`."""
