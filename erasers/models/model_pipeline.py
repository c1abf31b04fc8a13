"""A model of `transformers`, in the form in which pipelines are erased: its one component is the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from erasers.models.families import UnsupportedPipeline

COMPONENT = "model"
"""Name of the component: patches call its weights `model.<path>`."""


@dataclass(frozen=True, eq=False)
class ModelPipeline:
    """A model of `transformers` with its processor, as `Eraser.fit` and `Patch.apply` take it.

    A pipeline of `transformers.pipeline` that has both is taken, too.

    Args:
        model: The model, which patches edit in place.
        processor: What makes its inputs; its `tokenizer` reads text.

    Raises:
        UnsupportedPipeline: Something else.
    """

    model: Any
    processor: Any

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module) or not hasattr(self.processor, "tokenizer"):
            raise UnsupportedPipeline(
                "expected a model of transformers and its processor, which has a tokenizer, got "
                f"{type(self.model).__name__} and {type(self.processor).__name__}"
            )

    @property
    def components(self) -> dict[str, Any]:
        """The model and its processor by name."""
        return {COMPONENT: self.model, "processor": self.processor}


def model_pipeline(pipe: Any, classes: Sequence[str]) -> ModelPipeline:
    """The model and processor of a pipeline.

    Args:
        pipe: A `ModelPipeline`, or one of `transformers.pipeline`.
        classes: Names of the classes that the model may have; subclasses count.

    Raises:
        UnsupportedPipeline: Another model, or no such pipeline.
    """
    wanted, model = " or ".join(classes), vars(pipe).get(COMPONENT) if hasattr(pipe, "__dict__") else None
    kinds = [cls.__name__ for cls in type(getattr(model, "_orig_mod", model)).__mro__]
    if isinstance(pipe, nn.Module):
        raise UnsupportedPipeline(
            f"expected a {wanted} with its processor, got {type(pipe).__name__} alone; hold both: "
            "erasers.ModelPipeline(model, processor)"
        )
    if not any(name in kinds for name in classes):
        got = type(pipe).__name__ + (f" of a {kinds[0]}" if isinstance(model, nn.Module) else "")
        raise UnsupportedPipeline(f"expected a {wanted} of transformers in erasers.ModelPipeline, got {got}")
    return pipe if isinstance(pipe, ModelPipeline) else ModelPipeline(model, getattr(pipe, "processor", None))
