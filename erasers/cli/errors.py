"""What an exception says to the user of the command: one line, and an exit code."""

from __future__ import annotations

import os
from collections.abc import Sequence

from erasers.models.families import UnsupportedPipeline

_OPTIONS = {
    "pass force=True": "pass --force",
    "for config=": "for --config",
    "patch.to_delta(pipe, folder)": "--form delta",
    "set memory to": "set --memory to",
    "expected memory": "expected --memory",
    "gradient_checkpointing=true": "--set gradient_checkpointing=true",
    "a rank above 0": "--set rank=16",
    "form='peft'": "--form lora",
}
"""Words of the library -> of the command."""


def refusal(error: Exception) -> tuple[str, int]:
    """The line and the exit code of an error: 2 for bad input, 1 for what should not happen."""
    # Usage errors of the argument parser carry `format_message`; the types below are the library's refusals.
    usage = getattr(error, "format_message", None)
    if usage is not None:
        text = str(usage())
        hint = " (a concept is given as --concept TEXT)" if text.startswith("No such command") else ""
        return text + hint, 2
    if isinstance(error, (ValueError, OSError, UnsupportedPipeline)):
        return _in_options(_said(error)) or type(error).__name__, 2
    if isinstance(error, RuntimeError) and _is_out_of_memory(error):
        return "out of memory; take a smaller --size, fewer pictures, or half precision (--dtype)", 2
    return f"{type(error).__name__}: {error}; set ERASERS_DEBUG=1 for the traceback", 1


def check_text(arguments: Sequence[str]) -> None:
    """Refuse arguments whose bytes are no text: they could be neither printed nor written to a file."""
    for argument in arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise ValueError(f"expected arguments in UTF-8, got {argument!r}")


def _said(error: Exception) -> str:
    """What an error says; of one of the system, which file and why."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


def _in_options(message: str) -> str:
    """A message of the library in the words of the command."""
    for words, option in _OPTIONS.items():
        message = message.replace(words, option)
    return message


def _is_out_of_memory(error: Exception) -> bool:
    from erasers.diffusion.memory import is_out_of_memory

    return is_out_of_memory(error)
