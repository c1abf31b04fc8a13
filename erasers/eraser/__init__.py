"""The interface of every method, the registry by which it is found, and what every method does before any work."""

from erasers.eraser.eraser import Eraser
from erasers.eraser.model_eraser import ModelEraser
from erasers.eraser.registry import (
    eraser_class,
    get_eraser,
    is_stack,
    list_erasers,
    option_names,
    options_for,
    parse_options,
    preset_for,
)
from erasers.eraser.stack import Stack, members_of

__all__ = [
    "Eraser",
    "ModelEraser",
    "Stack",
    "eraser_class",
    "get_eraser",
    "is_stack",
    "list_erasers",
    "members_of",
    "option_names",
    "options_for",
    "parse_options",
    "preset_for",
]
