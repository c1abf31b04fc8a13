"""A pipeline whose denoiser reads something else in place of a text."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.conditions import conditions
from erasers.diffusion.supported import check_drawable
from erasers.models.calls import handed_on
from erasers.models.families import UnsupportedPipeline

# The same prompt in another batch, or in single precision, differs in its last digits.
_ROUNDING = 1e-3


@contextmanager
def read_instead(pipe: Any, text: str, condition: Condition) -> Iterator[None]:
    """Inside, `pipe` draws with a condition wherever it is given a text; other texts are read as ever.

    What `encode_prompt` returns of the text is exchanged, so that nothing of the text encoders has a part in it.

    Args:
        pipe: A pipeline that `check_instead` takes.
        text: The prompt; all prompts of a call are this one.
        condition: States and pooled vector `[1]`, in the shape of the text's own.

    Raises:
        ValueError: Prompts were encoded, and none of them as the text is.
    """
    plain, own, read = conditions(pipe, [text]), pipe.encode_prompt, list[bool]()

    @functools.wraps(own)
    def encode_prompt(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        output = own(*args, **kwargs)
        read.append(any(_same(value, plain.states) for value in _flat(output)))
        return exchanged(output, plain, condition)

    pipe.encode_prompt = encode_prompt
    try:
        yield
    finally:
        del pipe.encode_prompt
    if read and not any(read):
        raise ValueError(
            f"expected {type(pipe).__name__} to read {text!r} as it was read before, got other states; draw with the "
            "number of tokens and the clip_skip that it was attacked with"
        )


def check_instead(pipe: Any) -> None:
    """Refuse what `check_drawable` does, and pipelines that hand the states of a prompt on in another form.

    Raises:
        UnsupportedPipeline: Says what is needed.
        ValueError: As `check_drawable`.
    """
    check_drawable(pipe)
    plain = conditions(pipe, ["a"])
    with torch.no_grad():
        output = pipe.encode_prompt(["a"], **handed_on(pipe))
    if not any(_same(value, plain.states) for value in _flat(output)):
        raise UnsupportedPipeline(
            f"expected a pipeline whose encode_prompt returns what its denoiser reads, got {type(pipe).__name__}"
        )


def exchanged(output: Sequence[Any], plain: Condition, condition: Condition) -> tuple[Any, ...]:
    """What `encode_prompt` returned, with a condition in the place of the plain one."""
    pairs = [(plain.states, condition.states)]
    if plain.pooled is not None and condition.pooled is not None:
        pairs.append((plain.pooled, condition.pooled))
    return tuple(_exchanged(value, pairs) for value in output)


def _exchanged(value: Any, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    if isinstance(value, list):
        # A prompt each: they may be of different lengths.
        return [_exchanged(states[None], pairs)[0] for states in value]
    for old, new in pairs:
        if _same(value, old):
            return new.to(value.device, value.dtype).expand_as(value).contiguous()
    return value


def _flat(output: Sequence[Any]) -> list[Any]:
    """What was returned, with the states of the prompts of a list as those of one."""
    return [value[0][None] if isinstance(value, list) and value else value for value in output]


def _same(value: Any, plain: torch.Tensor) -> bool:
    """Whether each row of a tensor is that of the plain prompt `[1, ...]`."""
    if not isinstance(value, torch.Tensor) or value.shape[1:] != plain.shape[1:]:
        return False
    return float((value - plain).abs().max()) <= _ROUNDING * float(plain.abs().max())
