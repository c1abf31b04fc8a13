"""Concept erasure for diffusers pipelines.

An `Eraser` reads a pipeline and a concept and returns a `Patch`; a `Patch` applied to a pipeline gives an erased one.
The names below are imported on first use, so that `import erasers` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erasers.concept import Concept
    from erasers.eraser import Eraser, get_eraser, list_erasers
    from erasers.models.families import UnsupportedPipeline
    from erasers.models.loading import ModelNotFound
    from erasers.models.model_pipeline import ModelPipeline
    from erasers.patch import Patch, PatchError
    from erasers.patch.forms import load_lora
    from erasers.pipeline import ErasedPipeline, load_model, load_pipeline

    __version__: str

_HOME = {
    "Concept": "concept",
    "ErasedPipeline": "pipeline",
    "Eraser": "eraser",
    "ModelNotFound": "models.loading",
    "ModelPipeline": "models.model_pipeline",
    "Patch": "patch",
    "PatchError": "patch",
    "UnsupportedPipeline": "models.families",
    "get_eraser": "eraser",
    "list_erasers": "eraser",
    "load_lora": "patch.forms",
    "load_model": "pipeline",
    "load_pipeline": "pipeline",
}

__all__ = [
    "Concept",
    "ErasedPipeline",
    "Eraser",
    "ModelNotFound",
    "ModelPipeline",
    "Patch",
    "PatchError",
    "UnsupportedPipeline",
    "__version__",
    "get_eraser",
    "list_erasers",
    "load_lora",
    "load_model",
    "load_pipeline",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from erasers.version import library_version

        return library_version()
    if name not in _HOME:
        raise AttributeError(f"module 'erasers' has no attribute {name!r}")
    return getattr(import_module(f"erasers.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
