"""What measurements of patches have in common: the patches, and the files that are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from erasers.cli.console import out
from erasers.cli.groups import refuse_idle
from erasers.cli.options import PATCH, Overwrite
from erasers.cli.targets import beside, check_out_file, check_targets, written_or_kept

if TYPE_CHECKING:
    from erasers.patch import Patch

Patches = Annotated[list[str], typer.Argument(metavar="PATCH...", help=f"{PATCH}; each is a row.")]


@dataclass(frozen=True)
class Results:
    """Where a measurement is written."""

    out_file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.json", help="All numbers as JSON; the figure goes beside it as .png."),
    ] = None
    overwrite: Overwrite = False

    def check(self, context: typer.Context, inputs: Mapping[str, object]) -> None:
        """Refuse targets that cannot be written, or that would destroy something.

        Raises:
            ValueError: Another ending, a folder, or a file that is read.
            FileExistsError: A file that is there.
        """
        if self.out_file is None:
            refuse_idle(context, ["--overwrite"], "for files; add --out FILE.json")
            return
        if self.out_file.suffix != ".json":
            raise ValueError(f"--out {self.out_file}: expected a name that ends in .json")
        target = check_out_file(self.out_file)
        check_targets({"--out": target, **beside(target, [".png"])}, inputs, overwrite=self.overwrite)

    def write(self, measured: Mapping[str, Any], draw: Callable[[Mapping[str, Any], Path], None]) -> None:
        """Write the numbers and the figure."""
        if self.out_file is None:
            return
        text, figure = json.dumps(measured, indent=1) + "\n", self.out_file.with_suffix(".png")
        write_text: Callable[[Path], object] = lambda file: file.write_text(text, encoding="utf-8")  # noqa: E731
        written_or_kept(write_text, self.out_file, overwrite=self.overwrite)
        written_or_kept(lambda file: draw(measured, file), figure, overwrite=self.overwrite)
        out.print(f"numbers   {escape(str(self.out_file))}, figure {escape(str(figure))}")


def named_patches(references: Sequence[str]) -> dict[str, Patch]:
    """Patches by the name of their row: that of the file, or the whole reference where two files have one name.

    Raises:
        ValueError: A patch twice.
    """
    from erasers.pipeline import as_patches

    if len(set(references)) < len(references):
        raise ValueError("expected each patch once, got one twice")
    short = [Path(reference).stem for reference in references]
    names = [stem if short.count(stem) == 1 else reference for stem, reference in zip(short, references, strict=True)]
    return dict(zip(names, as_patches(references), strict=True))
