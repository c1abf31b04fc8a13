"""The eraser of a command: a method with the options that were given, that its paper has, or that suit the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erasers.cli.options import SEED, Memory
from erasers.cli.words import suggest
from erasers.concept import Concept, preset_options
from erasers.eraser import get_eraser, list_erasers, option_names, options_for, parse_options, preset_for

if TYPE_CHECKING:
    from erasers.eraser import Eraser


@dataclass(frozen=True)
class Fitting:
    """How a patch is fitted."""

    seed: Annotated[int, typer.Option(min=0, max=SEED, help="Seed of what the method draws.")] = 0
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="File that a training goes on from when it was stopped; gone when the patch is there."),
    ] = None
    memory: Memory = None

    def check(self, eraser: Eraser, concepts: Sequence[Concept]) -> int | None:
        """Refuse what the method would not use; the bytes of `--memory`.

        Raises:
            ValueError: Pictures, a checkpoint or a memory for a method that has none, a checkpoint that cannot be
                written, or a memory that is no size.
        """
        if any(concept.images for concept in concepts) and not eraser.sees:
            raise ValueError(f"--images is for methods that learn from pictures (few_shot), got {eraser.name}")
        for option, value in {"--checkpoint": self.checkpoint, "--memory": self.memory}.items():
            if value is not None and not eraser.trains:
                raise ValueError(f"{eraser.name} does not train, so it has no {option}")
        if self.checkpoint and (self.checkpoint.is_dir() or not self.checkpoint.parent.is_dir()):
            raise ValueError(f"expected a file in an existing folder as --checkpoint, got {self.checkpoint}")
        return bytes_of(self.memory)

    def forget(self) -> None:
        """Remove the checkpoint: the patch is there."""
        if self.checkpoint:
            from erasers.training.loop import discard_checkpoint

            discard_checkpoint(self.checkpoint)


def check_method(method: str) -> None:
    """Refuse a method that is not registered, without loading one; in a stack, all are looked at.

    Raises:
        ValueError: Lists the methods and the nearest one.
    """
    for member in method.split("+"):
        _check_member(member)


def _check_member(method: str) -> None:
    known, name = list_erasers(), method.partition("-")[0]
    if name in list_erasers("models"):
        raise ValueError(
            f"{method} erases models of transformers, not pipelines of diffusers, and is called from Python: "
            f"erasers.get_eraser({method!r}).fit(erasers.ModelPipeline(model, processor), concept)"
        )
    if name not in known:
        raise ValueError(
            f"unknown method {method!r}{suggest(method, known)}; known are {', '.join(known)}; see erase methods"
        )


def build_eraser(
    method: str, settings: Sequence[str], concepts: Sequence[Concept], model: str | Path = ""
) -> tuple[Eraser, str]:
    """The eraser with the options of `--set` over those its paper gives for the concepts, or that suit the model.

    Args:
        method: A method, a preset or a stack.
        settings: As given.
        concepts: What is erased.
        model: As for `load_pipeline`; an embedded one has settings of its own.

    Returns:
        The eraser, and what the user should know about its options ("" when nothing).

    Raises:
        ValueError: Unknown method or option, or a bad value.
    """
    check_method(method)
    known = option_names(method)
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if "=" in setting and key not in known:
            raise ValueError(f"{method} has no option {key!r}{suggest(key, known)}; it has {', '.join(known)}")
    options = parse_options(method, settings)
    presets = [preset_options(concept.name, method) for concept in concepts]
    agreed, note = presets[0], ""
    if any(preset != agreed for preset in presets):
        agreed, note = {}, f"the concepts have different presets for {method}; its defaults are used (see --set)"
    elif agreed:
        values = ", ".join(f"{key}={value}" for key, value in (agreed | options).items())
        note = f"preset for {', '.join(concept.name for concept in concepts)}: {values}"
    if own := options_for(method, model):
        agreed, note = {**agreed, **own}, f"settings for the embedded model: {preset_for(method, model)}"
    return get_eraser(method, **{**agreed, **options}), note


def bytes_of(memory: str | None) -> int | None:
    """Bytes of a size such as 24GB.

    Raises:
        ValueError: Another text.
    """
    if memory is None:
        return None
    from erasers.diffusion.memory import parse_memory

    return parse_memory(memory)
