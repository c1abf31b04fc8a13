"""What tests share: tiny models, made files, and doubles of what cannot be had here."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
REPOSITORY = Path(__file__).parents[2]
