"""The interface of every method, the registry by which it is found, and what every method does before any work."""

from erasers.eraser.eraser import (
    Eraser,
    eraser_class,
    get_eraser,
    list_erasers,
    options_for,
    parse_options,
    preset_for,
)
from erasers.eraser.model_eraser import ModelEraser

__all__ = [
    "Eraser",
    "ModelEraser",
    "eraser_class",
    "get_eraser",
    "list_erasers",
    "options_for",
    "parse_options",
    "preset_for",
]
