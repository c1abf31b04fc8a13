"""What a pipeline makes of a prompt before its tokenizer reads it."""

from __future__ import annotations

from typing import Any


def converted(pipe: Any, tokenizer: Any, text: str) -> str:
    """The text that the pipeline hands to the tokenizer: the name of a textual inversion of several vectors is followed
    by names of the others ("<toy>" becomes "<toy> <toy>_1 ...")."""
    convert = getattr(pipe, "maybe_convert_prompt", None)
    added = getattr(tokenizer, "added_tokens_encoder", {})
    return str(convert(text, tokenizer)) if convert is not None and any(token in text for token in added) else text
