"""The eraser that a file of another trainer describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erasers.cli.groups import given_options
from erasers.eraser import parse_options

if TYPE_CHECKING:
    from erasers.eraser import Eraser
    from erasers.methods.leco import Recipe

RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="FILE",
        help="Train the LoRA that a file of LECO, ai-toolkit (concept_slider) or kohya (train_leco) describes, "
        "in place of a method.",
    ),
]


def read(file: Path, context: typer.Context) -> Recipe:
    """What the file of `--recipe` describes.

    Raises:
        ValueError: No such file's content, a method beside it, or a model in it and none on the command line.
        OSError: It cannot be read.
    """
    from erasers.methods.leco import read_recipe

    given = given_options(context)
    if "--method" in given:
        raise ValueError("--recipe says what is trained and how; leave out --method")
    recipe = read_recipe(file)
    if recipe.model and "--model" not in given:
        raise ValueError(
            f"{file} is for the model {recipe.model!r}, which is not taken from a file; name it by --model"
        )
    return recipe


def eraser_of(recipe: Recipe, settings: Sequence[str]) -> tuple[Eraser, str]:
    """The eraser with the options of `--set` over those of the file, and what the user should know of the file.

    Raises:
        ValueError: Unknown options or bad values.
    """
    from erasers.methods.leco import LECO

    known = [field.name for field in fields(LECO) if field.name != "pairs"]
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if "=" in setting and key not in known:
            raise ValueError(f"a recipe has no option {key!r}; it has {', '.join(known)}")
    note = f"keys of the recipe without a meaning here: {', '.join(recipe.unused)}" if recipe.unused else ""
    return recipe.eraser(**parse_options(LECO, settings)), note
