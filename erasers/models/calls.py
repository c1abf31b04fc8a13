"""How the call of a pipeline asks its own `encode_prompt`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_TOKENS = "max_sequence_length"
_tokens: ContextVar[int | None] = ContextVar("tokens", default=None)

# What `__call__` hands on to `encode_prompt`, besides the prompt.
_HANDED_ON = (
    _TOKENS,
    "clean_caption",
    "complex_human_instruction",
    "text_encoder_out_layers",
    "system_prompt",
)


def handed_on(pipe: Any) -> dict[str, Any]:
    """Arguments of `encode_prompt`: as `__call__` gives them, for one picture of each prompt and without guidance."""
    wanted, called = inspect.signature(pipe.encode_prompt).parameters, inspect.signature(type(pipe).__call__).parameters
    options = {name: called[name].default for name in _HANDED_ON if name in called}
    options |= {"num_images_per_prompt": 1, "num_videos_per_prompt": 1, "do_classifier_free_guidance": False}
    options |= {"device": pipe._execution_device, "prompt_2": None, "prompt_3": None}
    if _TOKENS in options and _tokens.get() is not None:
        options[_TOKENS] = _tokens.get()
    if "text_encoder_index" in wanted:
        options.pop(_TOKENS, None)
    return {name: value for name, value in options.items() if name in wanted}


def check_tokens(pipe: Any, count: int | None) -> None:
    """Refuse a number of tokens that prompts are padded or cut to for a pipeline that takes none.

    Raises:
        ValueError: Names it and the pipeline.
    """
    if count is not None and _TOKENS not in inspect.signature(type(pipe).__call__).parameters:
        raise ValueError(f"expected no {_TOKENS}, which {type(pipe).__name__} does not take")


@contextmanager
def tokens_a_prompt(pipe: Any, count: int | None) -> Iterator[None]:
    """Inside, prompts are padded or cut to so many tokens, as with the call's `max_sequence_length`; None: as ever.

    Raises:
        ValueError: The pipeline takes no such number.
    """
    check_tokens(pipe, count)
    token = _tokens.set(count)
    try:
        yield
    finally:
        _tokens.reset(token)


def default_of(pipe: Any, name: str) -> Any:
    """What an argument of the pipeline's call is where nobody says it; None where it takes none."""
    argument = inspect.signature(type(pipe).__call__).parameters.get(name)
    return None if argument is None else argument.default
