"""The interface of every method, and the registry by which a method is found.

A method is a frozen keyword-only dataclass that subclasses `Eraser` and is registered under the entry-point group
`erasers`, or, where it subclasses `ModelEraser`, under `erasers.models`. Its fields are its hyper-parameters; `fit`
reads a pipeline and returns a `Patch`, and never changes the pipeline: it checks and prepares, and the method's own
`_fit` does the rest. A preset is a set of field values with a name of the form `<method>-<something>`;
`<method>-<world>`, or `<method>-embedded`, has those that suit an embedded model, where they are other than the
paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_type_hints

from erasers import worlds
from erasers.options import check_fields, describe, parsed

if TYPE_CHECKING:
    import torch

    from erasers.concept import Concept, Concepts
    from erasers.patch import Patch

GROUP = "erasers"
"""Entry points of methods for pipelines of diffusers."""
MODELS = "erasers.models"
"""Entry points of methods for models of `transformers`."""

_TOKENS = "max_sequence_length"


@dataclass(frozen=True, kw_only=True)
class Eraser:
    """A method with its hyper-parameters. Subclasses add fields and `_fit`, or a `fit` of their own.

    Args:
        everyday: Keep everyday captions, too, when few texts are preserved (`captions.txt`).
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    """Title and address of what it is from, in Markdown."""
    family: ClassVar[str] = ""
    """What is changed, and how."""
    strengths: ClassVar[str] = ""
    """In a few words."""
    limits: ClassVar[str] = ""
    """In a few words."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    trains: ClassVar[bool] = False
    """Whether `fit` trains, and so takes long, shows bars itself, and takes `checkpoint` and `memory`."""
    keeps: ClassVar[bool] = True
    """Whether the method has a part that keeps preserved texts."""

    sees: ClassVar[bool] = False
    """Whether the method learns from a concept's own pictures."""

    everywhere: ClassVar[bool] = True
    """Whether it is for every family; otherwise a task has it for a row only where it is named."""

    everyday: bool = True

    def __post_init__(self) -> None:
        """Check the type of every field; subclasses check ranges.

        Raises:
            ValueError: Names the field, what it takes and what it got.
        """
        check_fields(self)

    def check_pipe(self, pipe: Any) -> None:
        """Refuse a pipeline that the method cannot edit, before anything is done; here none.

        Raises:
            UnsupportedPipeline: Lists those that it can.
        """

    def prepared(self, pipe: Any, concepts: Concepts) -> tuple[Concept, ...]:
        """The concepts as `_fit` takes them: checked as the pipeline reads them, and with what is kept beside them.

        Raises:
            UnsupportedPipeline: A class that the library does not know; the message lists the known ones.
            ValueError: Contradictions, or an anchor that the pipeline reads as the concept itself.
        """
        from erasers.eraser.preparing import prepared

        captions, length = self.everyday and self.keeps, getattr(self, "max_sequence_length", None)
        aliases = bool(getattr(self, "aliases", True))
        return prepared(pipe, concepts, aliases=aliases, captions=captions, max_length=length)

    def fit(
        self, pipe: Any, concepts: Concepts, *, generator: torch.Generator | None = None, progress: bool = True
    ) -> Patch:
        """Compute the patch that erases `concepts` from `pipe`; the pipe is bit-identical afterwards.

        Args:
            pipe: A stock diffusers pipeline.
            concepts: One concept or several, as `Concept` or as text.
            generator: Source of every random number that the method draws; seed 0 when None.
            progress: Show progress where the method takes long.

        Raises:
            UnsupportedPipeline: A class that the library does not know; the message lists the known ones.
            ValueError: Concepts that cannot be erased with these hyper-parameters.
        """
        import torch

        self.check_pipe(pipe)
        prepared = self.prepared(pipe, concepts)
        return self._fit(pipe, prepared, generator or torch.Generator().manual_seed(0), progress)

    def _fit(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, progress: bool) -> Patch:
        """The method itself, for a pipeline that `check_pipe` takes and concepts that are `prepared`."""
        raise NotImplementedError(f"expected {type(self).__name__} with a _fit of its own, got none")

    def config(self) -> dict[str, Any]:
        """The hyper-parameters as plain JSON-able values."""
        return asdict(self)


def list_erasers(of: Literal["pipelines", "models"] = "pipelines") -> list[str]:
    """Names of the registered methods, sorted.

    Args:
        of: Those for pipelines of diffusers, or those for models of `transformers`.
    """
    return sorted(_methods(MODELS if of == "models" else GROUP))


def get_eraser(name: str, **options: Any) -> Eraser:
    """Build an eraser.

    Args:
        name: A method (`uce`) or one of its presets (`uce-v1`).
        **options: Field values; they win over the preset's.

    Raises:
        ValueError: Unknown name, unknown option or a value that the method refuses.
    """
    cls = eraser_class(name)
    known = _option_names(cls)
    for option in options:
        if option not in known:
            raise ValueError(f"expected options of {name!r} among {', '.join(known)}, got {option!r}")
    return cls(**{**cls.presets.get(name, {}), **options})


def preset_for(name: str, model: str | Path) -> str | None:
    """The preset of a method that suits an embedded model: `<method>-<world>`, else `<method>-embedded`.

    A world that draws the pictures of another takes that one's where it has none of its own.

    Args:
        name: A method or preset name.
        model: By its name or folder.

    Returns:
        Its name; None where there is none, and for a model of no world.
    """
    cls, world = eraser_class(name), worlds.find(model)
    suffixes = (*world.lineage, "embedded") if world else ()
    return next((preset for suffix in suffixes if (preset := f"{cls.name}-{suffix}") in cls.presets), None)


def options_for(name: str, model: str | Path) -> dict[str, Any]:
    """The field values that suit a model, without those that a preset of the name sets itself.

    They are those of its preset, and the tokens of a prompt that its world draws with.
    """
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
        name: A method or preset name, or the class of a method that has none.
        settings: Texts such as `ridge=0.5`; a tuple is written with commas, `none` stands for None.

    Raises:
        ValueError: Names the key and what is allowed.
    """
    cls = eraser_class(name) if isinstance(name, str) else name
    hints = get_type_hints(cls)
    known = _option_names(cls)
    options: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals:
            raise ValueError(f"expected an option as key=value, got {setting!r}")
        if key not in known:
            raise ValueError(
                f"expected options of {cls.name if name is cls else name!r} among {', '.join(known)}, got {key!r}"
            )
        try:
            options[key] = parsed(text.strip(), hints[key])
        except ValueError:
            raise ValueError(f"expected {key} as {describe(hints[key])}, got {text.strip()!r}") from None
    return options


def _option_names(cls: type[Eraser]) -> list[str]:
    return [field.name for field in fields(cls) if field.init]


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
