"""The interface of every method.

A method is a frozen keyword-only dataclass that subclasses `Eraser`. Its fields are its hyper-parameters; `fit` reads a
pipeline and returns a `Patch`, and never changes the pipeline: it checks and prepares, and the method's own `_fit` does
the rest. A preset is a set of field values with a name of the form `<method>-<something>`; `<method>-<world>`, or
`<method>-embedded`, has those that suit an embedded model, where they are other than the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from erasers.options import check_fields

if TYPE_CHECKING:
    import torch

    from erasers.concept import Concept, Concepts
    from erasers.patch import Patch


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

    hooks: ClassVar[bool] = False
    """Whether any of its patch runs during generation, which whoever has the pipeline can take off."""

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
