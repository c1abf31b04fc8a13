"""How a method is found: by its entry point, in the group `erasers`, or `erasers.models` for a `ModelEraser`.

`a+b` is the stack of the methods a and b: see `erasers.eraser.stack`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, get_type_hints

from erasers import worlds
from erasers.eraser.eraser import Eraser
from erasers.eraser.stack import Stack
from erasers.options import describe, parsed

GROUP = "erasers"
"""Entry points of methods for pipelines of diffusers."""
MODELS = "erasers.models"
"""Entry points of methods for models of `transformers`."""

_TOKENS = "max_sequence_length"


def list_erasers(of: Literal["pipelines", "models"] = "pipelines") -> list[str]:
    """Names of the registered methods, sorted.

    Args:
        of: Those for pipelines of diffusers, or those for models of `transformers`.
    """
    return sorted(_methods(MODELS if of == "models" else GROUP))


def get_eraser(name: str, **options: Any) -> Eraser:
    """Build an eraser.

    Args:
        name: A method (`uce`), one of its presets (`uce-v1`), or several of these in a stack (`robust_ablation+uce`).
        **options: Field values; they win over the preset's. Those of a stack are named `<method>.<field>`.

    Raises:
        ValueError: Unknown name, unknown option or a value that the method refuses.
    """
    known = option_names(name)
    for option in options:
        if option not in known:
            raise ValueError(f"expected options of {name!r} among {', '.join(known)}, got {option!r}")
    if is_stack(name):
        return Stack(members=tuple(get_eraser(part, **_own(part, options)) for part in name.split("+")))
    cls = eraser_class(name)
    return cls(**{**cls.presets.get(name, {}), **options})


def is_stack(name: str) -> bool:
    """Whether a name is of several methods, as in `robust_ablation+uce`."""
    return "+" in name


def preset_for(name: str, model: str | Path) -> str | None:
    """The preset of a method that suits an embedded model: `<method>-<world>`, else `<method>-embedded`.

    A world that draws the pictures of another takes that one's where it has none of its own.

    Args:
        name: A method or preset name, or a stack.
        model: By its name or folder.

    Returns:
        Its name, those of a stack joined by `+`; None where there is none, and for a model of no world.
    """
    if is_stack(name):
        presets = [preset for part in name.split("+") if (preset := preset_for(part, model))]
        return "+".join(presets) or None
    cls, world = eraser_class(name), worlds.find(model)
    suffixes = (*world.lineage, "embedded") if world else ()
    return next((preset for suffix in suffixes if (preset := f"{cls.name}-{suffix}") in cls.presets), None)


def options_for(name: str, model: str | Path) -> dict[str, Any]:
    """The field values that suit a model, without those that a preset of the name sets itself.

    They are those of its preset, and the tokens of a prompt that its world draws with.
    """
    if is_stack(name):
        return _stacked({part: options_for(part, model) for part in name.split("+")})
    cls, world = eraser_class(name), worlds.find(model)
    suited = dict(cls.presets.get(preset_for(name, model) or "", {}))
    if world and world.tokens is not None and any(field.name == _TOKENS for field in fields(cls)):
        suited = {_TOKENS: world.tokens} | suited
    own = cls.presets.get(name, {})
    return {key: value for key, value in suited.items() if key not in own}


def eraser_class(name: str) -> type[Eraser]:
    """The class of a method or of a preset.

    Raises:
        ValueError: Neither a method nor a preset; the message lists both.
    """
    methods = _methods()
    method = name if name in methods else str(name).partition("-")[0]
    if method in methods:
        cls = _load(methods[method])
        if name == method or name in cls.presets:
            return cls
    raise ValueError(f"expected a method or preset among {', '.join(_known_names())}, got {name!r}")


def parse_options(name: str | type[Eraser], settings: Sequence[str]) -> dict[str, Any]:
    """Turn `key=value` texts into field values of a method or preset.

    Args:
        name: A method or preset name, a stack, or the class of a method that has none.
        settings: Texts such as `ridge=0.5`, or `uce.ridge=0.5` for a stack; a tuple is written with commas, `none`
            stands for None.

    Raises:
        ValueError: Names the key and what is allowed.
    """
    known = option_names(name)
    hints = _hints(name)
    options: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals:
            raise ValueError(f"expected an option as key=value, got {setting!r}")
        if key not in known:
            raise ValueError(
                f"expected options of {name if isinstance(name, str) else name.name!r} among {', '.join(known)}, got "
                f"{key!r}"
            )
        try:
            options[key] = parsed(text.strip(), hints[key])
        except ValueError:
            raise ValueError(f"expected {key} as {describe(hints[key])}, got {text.strip()!r}") from None
    return options


def option_names(name: str | type[Eraser]) -> list[str]:
    """The names of the hyper-parameters of a method, a preset or a stack."""
    if isinstance(name, str) and is_stack(name):
        return list(_stacked({part: dict.fromkeys(option_names(part)) for part in name.split("+")}))
    return [field.name for field in fields(_class(name)) if field.init]


def _hints(name: str | type[Eraser]) -> dict[str, Any]:
    if isinstance(name, str) and is_stack(name):
        return _stacked({part: _hints(part) for part in name.split("+")})
    return get_type_hints(_class(name))


def _class(name: str | type[Eraser]) -> type[Eraser]:
    return eraser_class(name) if isinstance(name, str) else name


def _stacked(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Values of each method of a stack by their name, as values of the stack."""
    return {f"{eraser_class(name).name}.{key}": value for name, own in values.items() for key, value in own.items()}


def _own(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What options of a stack are of one of its methods."""
    start = f"{eraser_class(name).name}."
    return {key.removeprefix(start): value for key, value in options.items() if key.startswith(start)}


def _methods(*groups: str) -> dict[str, EntryPoint]:
    """Entry points by the name of the method, those of all groups where none is named."""
    return {entry.name: entry for group in groups or (GROUP, MODELS) for entry in entry_points(group=group)}


def _load(entry: EntryPoint) -> type[Eraser]:
    cls = entry.load()
    if not (isinstance(cls, type) and issubclass(cls, Eraser)):
        raise ValueError(f"expected entry point {entry.name!r} to name an Eraser class, got {cls!r} ({entry.value})")
    return cls


def _known_names() -> list[str]:
    names = []
    for method, entry in sorted(_methods().items()):
        names += [method, *sorted(_load(entry).presets)]
    return names
