"""The worlds that there are: those of the package, and those of installed packages that register one."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import resolve_name

from erasers.worlds.world import World

GROUP = "erasers.worlds"
"""Entry points of this group name further worlds, as `name = module:Class`."""

_TABLE = {
    "shapes": "erasers.worlds.shapes:Shapes",
    "shapes-sd3": "erasers.worlds.shapes_sd3:ShapesSD3",
}
"""Name -> class of a world; a new world of the package is a folder beside this file and a line here."""

DEFAULT = next(iter(_TABLE))
"""The world that stands where none is named."""

MODELS = {name: Path(__file__).parent / name.replace("-", "_") / "model" for name in ("shapes-janus", "shapes-llava")}
"""Name -> folder of the models of transformers in the package, which are no pipelines: they draw or see pictures of the
default world, and `erasers.load_model` loads them."""


def list_worlds() -> list[str]:
    """Names of the worlds, those of the package first."""
    return list(_places())


def get(name: str) -> World:
    """A world by its name.

    Raises:
        ValueError: There is no such world; the message lists those there are.
    """
    if name not in _places():
        raise ValueError(f"expected a world among {', '.join(list_worlds())}, got {name!r}")
    return _made(_places()[name])


def find(model: str | Path) -> World | None:
    """The world of a model, by its name or as an edited copy in a folder; None where it is of none."""
    if str(model) in _places():
        return get(str(model))
    return next((world for world in map(get, list_worlds()) if world.holds(model)), None)


@cache
def _places() -> dict[str, str]:
    """Name -> class; a name of the package stays what it is."""
    registered = {entry.name: entry.value for entry in entry_points(group=GROUP)}
    return _TABLE | registered | _TABLE


@cache
def _made(place: str) -> World:
    world = resolve_name(place)()
    if not isinstance(world, World):
        raise ValueError(f"expected a subclass of erasers.worlds.World as {place}, got {type(world).__name__}")
    return world
