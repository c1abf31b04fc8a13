"""The block of a model that an autoencoder describes, and the prompts that it is read for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from erasers.sae.presets import DENOISERS

TEXT_ENCODER = "text_encoder"
Component = Annotated[
    str | None,
    typer.Option(help="text_encoder, text_encoder_2, text_encoder_3, unet or transformer. [dim]text_encoder[/dim]"),
]
Block = Annotated[
    str | None,
    typer.Option(
        help="Block that is described: its number in a text encoder [dim]three quarters of the way up[/dim], "
        "its path in a UNet [dim]up_blocks.1.attentions.1[/dim] or a transformer [dim]the middle one[/dim], there with "
        ":text behind it for the tokens of the text."
    ),
]


def read_prompts(path: Path) -> list[str]:
    """Distinct lines of a text file.

    Raises:
        ValueError: No such file, or no prompts in it.
    """
    if not path.is_file():
        raise ValueError(f"expected a text file as --prompts, got {path}, which is no file")
    texts = list(dict.fromkeys(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()))
    if not texts:
        raise ValueError(f"expected prompts in {path}, one a line, got none")
    return texts


def find_block(pipe: Any, component: str, block: str | None) -> Any:
    """The block of a text encoder or of a denoiser.

    Raises:
        ValueError: A component or a block that the model has not.
    """
    from erasers.sae.denoiser_block import find_denoiser_block
    from erasers.sae.text_blocks import encoder_block, readable_encoders

    denoisers = [name for name in DENOISERS if name in pipe.components]
    if component in denoisers:
        return find_denoiser_block(pipe, block)
    if component not in (names := readable_encoders(pipe)):
        raise ValueError(f"expected --component among {', '.join([*names, *denoisers])}, got {component!r:.80}")
    if block is not None and not block.isdecimal():
        raise ValueError(f"expected --block as a number for {component}, got {block!r:.80}")
    return encoder_block(pipe, component, None if block is None else int(block))
