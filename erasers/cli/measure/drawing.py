"""What measurements that draw share: an embedded world, the states of its model, and how pictures are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erasers.cli.measure.results import Results
from erasers.cli.model import Hardware
from erasers.cli.options import STEPS

if TYPE_CHECKING:
    from erasers.patch import Patch
    from erasers.worlds import World


@dataclass(frozen=True)
class Drawn:
    """What is drawn beside the patches, and how."""

    retrained: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A denoiser that was trained without the concept: a row, and the floor."),
    ] = None
    steps: Annotated[int | None, typer.Option(min=1, max=STEPS, help="Denoising steps. [dim]the world's own[/dim]")] = (
        None
    )

    def check(
        self, context: typer.Context, results: Results, hardware: Hardware, patches: Sequence[str], model: str
    ) -> None:
        """Refuse what no work should be begun for; raises as the groups do."""
        hardware.check()
        results.check(context, {"PATCH": patches, "--model": model, "--retrained": self.retrained})

    def settings(self, world: World) -> dict[str, Any]:
        """See `settings_of`."""
        return settings_of(world, self.steps)

    def states(
        self, pipe: Any, patches: Mapping[str, Patch], names: tuple[str, str]
    ) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
        """Row -> what puts the pipeline into its state.

        Args:
            pipe: The pipeline.
            patches: By the names of their rows.
            names: Of the rows of the unedited model, and of the retrained denoiser.

        Raises:
            ValueError: A patch has the name of one of these rows.
            FileNotFoundError: No denoiser in the folder.
        """
        from erasers.evaluation.run.states import find_reference, reference

        if taken := set(names) & set(patches):
            raise ValueError(f"expected patches with other names than those of rows, got {', '.join(taken)}")
        states: dict[str, Callable[[], AbstractContextManager[Any]]] = {names[0]: nullcontext}
        if self.retrained is not None:
            if find_reference([self.retrained]) is None:
                raise FileNotFoundError(
                    f"--retrained {self.retrained}: expected the folder of a denoiser, got no config.json"
                )
            states[names[1]] = partial(reference, pipe, self.retrained)
        return states | {row: partial(patch.applied, pipe) for row, patch in patches.items()}


def settings_of(world: World, steps: int | None) -> dict[str, Any]:
    """How pictures of a world are drawn, in other steps where they are given."""
    names = ("steps", "guidance", "batch", "size", "tokens")
    return {name: getattr(world, name) for name in names} | ({} if steps is None else {"steps": steps})


def world_of(model: str) -> World:
    """The embedded world of a model, which has the prompts and the judge.

    Raises:
        ValueError: It is of none.
    """
    from erasers import worlds

    if (world := worlds.find(model)) is None:
        known = ", ".join(worlds.list())
        raise ValueError(f"expected --model as one of an embedded world ({known}), whose judge is needed, got {model}")
    return world


def concept_of(patches: Mapping[str, Patch], concept: str | None) -> str:
    """The concept that is asked about: the one given, or that of all patches.

    Raises:
        ValueError: They erase several.
    """
    erased = {str(entry.get("name")) for patch in patches.values() for entry in patch.meta["concepts"]}
    if concept is None and len(erased) != 1:
        raise ValueError(f"expected patches of one concept, got {', '.join(sorted(erased))}; choose by --concept")
    return concept or erased.pop()
