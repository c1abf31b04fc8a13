"""What a pipeline makes of a prompt before its tokenizer reads it."""

from __future__ import annotations

from typing import Any


def converted(pipe: Any, tokenizer: Any, text: str) -> str:
    """The text that the pipeline hands to the tokenizer: the name of a textual inversion of several vectors is followed
    by names of the others ("<toy>" becomes "<toy> <toy>_1 ...")."""
    convert = getattr(pipe, "maybe_convert_prompt", None)
    if convert is None or not getattr(tokenizer, "added_tokens_encoder", None):
        return text
    return str(convert(text, tokenizer))
