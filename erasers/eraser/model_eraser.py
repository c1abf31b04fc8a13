"""Methods for models of `transformers`, which are no pipelines of diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from erasers.eraser.eraser import Eraser

if TYPE_CHECKING:
    import torch

    from erasers.concept import Concept, Concepts
    from erasers.patch import Patch


@dataclass(frozen=True, kw_only=True)
class ModelEraser(Eraser):
    """A method for models of `transformers`: its `_fit` gets an `erasers.ModelPipeline`."""

    models: ClassVar[tuple[str, ...]] = ()
    """Names of the classes of models that it takes."""

    def check_pipe(self, pipe: Any) -> None:
        """See `Eraser.check_pipe`."""
        from erasers.models.model_pipeline import model_pipeline

        model_pipeline(pipe, self.models)

    def prepared(self, pipe: Any, concepts: Concepts) -> tuple[Concept, ...]:
        """See `Eraser.prepared`; the model reads text itself."""
        from erasers.eraser.preparing import prepared

        captions, reader = self.everyday and self.keeps, ("model", pipe.processor, pipe.model)
        return prepared(pipe, concepts, aliases=getattr(self, "aliases", True), captions=captions, parts=[reader])

    def fit(
        self, pipe: Any, concepts: Concepts, *, generator: torch.Generator | None = None, progress: bool = True
    ) -> Patch:
        """See `Eraser.fit`.

        Args:
            pipe: An `erasers.ModelPipeline`, or a pipeline of `transformers.pipeline` with a processor.
            concepts: As there.
            generator: As there.
            progress: As there.

        Raises:
            UnsupportedPipeline: A model of another class.
            ValueError: As there.
        """
        from erasers.models.model_pipeline import model_pipeline

        return super().fit(model_pipeline(pipe, self.models), concepts, generator=generator, progress=progress)
