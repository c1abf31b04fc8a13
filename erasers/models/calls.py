"""How the call of a pipeline asks its own `encode_prompt`."""

from __future__ import annotations

import inspect
from typing import Any

# What `__call__` hands on to `encode_prompt`, besides the prompt.
_HANDED_ON = (
    "max_sequence_length",
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
    if "text_encoder_index" in wanted:
        options.pop("max_sequence_length", None)
    return {name: value for name, value in options.items() if name in wanted}


def default_of(pipe: Any, name: str) -> Any:
    """What an argument of the pipeline's call is where nobody says it; None where it takes none."""
    argument = inspect.signature(type(pipe).__call__).parameters.get(name)
    return None if argument is None else argument.default
