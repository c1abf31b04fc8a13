"""Checkpoints in one file with the names of the original code, as model sites offer them.

The file has the weights alone. Which model it is, its scheduler and its tokenizers stand in a diffusers folder of the
same kind: one that the user names, or the one that diffusers knows, from the Hub or the Hub's cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from erasers.files.hub import reason
from erasers.files.reading import at_home
from erasers.models import loading as components
from erasers.models.loading import ModelNotFound

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SUFFIX = ".safetensors"
_CONFIGURATION = ("*.json", "*.txt", "*.model", "*/*.json", "*/*.txt", "*/*.model")


def check_file(path: Path) -> Path:
    """A file that can be a checkpoint.

    Raises:
        ModelNotFound: A pickle, or no safetensors.
    """
    if path.suffix != SUFFIX:
        raise ModelNotFound(
            f"{path} is a file, but no {SUFFIX}; others can run code and are not read: get the {SUFFIX} file of that "
            "model, or load it with diffusers where you trust it, and write a folder with save_pretrained"
        )
    return path


def load_file(
    path: Path, dtype: torch.dtype, config: str | Path | None = None, variant: str | None = None, **given: Any
) -> DiffusionPipeline:
    """The pipeline of a checkpoint.

    Args:
        path: The file.
        dtype: Type of the weights.
        config: A diffusers folder of the same kind of model; it needs no weights.
        variant: Not taken here.
        **given: Components that are not to be loaded.

    Raises:
        ModelNotFound: No checkpoint, no configuration for it, or weights that it lacks.
    """
    if variant is not None:
        raise ModelNotFound(f"expected no variant of {path}, which is one file, got {variant!r}")
    folder = _configuration(path, config)
    index = components.read_index(folder)
    stock = components.pipeline_class(folder, index)
    if not hasattr(stock, "from_single_file"):
        raise ModelNotFound(f"cannot load {str(path)!r}: diffusers makes no {stock.__name__} of one file")
    classes = components.component_classes(folder, index, stock)
    components.refuse_code_and_pickles(folder, classes)
    parts = _beside(folder, classes, dtype, given)
    pipe = stock.from_single_file(str(path), config=str(folder), local_files_only=True, torch_dtype=dtype, **parts)
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            components.check_whole(module, path, {})
    return pipe


def _beside(folder: Path, classes: Mapping[str, Any], dtype: torch.dtype, given: Mapping[str, Any]) -> dict[str, Any]:
    """The components that no checkpoint has: tokenizers, schedulers; a safety checker is left out.

    Raises:
        ModelNotFound: Pickles, which diffusers would read where the checkpoint lacks a model.
    """
    parts: dict[str, Any] = {"safety_checker": None} if "safety_checker" in classes else {}
    for name, cls in classes.items():
        if issubclass(cls, nn.Module):
            if components.pickled(folder / name):
                raise components.refusal(folder, f"{name} has pickles; give a folder without weights")
        elif name not in given:
            parts[name] = components.load_component(cls, folder / name, dtype, None)
    return {**parts, **given}


def _configuration(path: Path, config: str | Path | None) -> Path:
    if config is not None:
        folder = at_home(config)
        if not (folder / components.INDEX).is_file():
            raise ModelNotFound(f"expected as config a diffusers folder of a model like {path.name}, got {config}")
        return folder
    repository = _kind(path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=list(_CONFIGURATION)))
    except Exception as error:
        # The Hub client raises a dozen unrelated types.
        why = reason(error, unknown="is not on the Hub any more", offline="cannot be fetched")
        raise ModelNotFound(
            f"cannot load {str(path)!r}: it looks like {repository}, whose configuration {why}; give a diffusers "
            "folder of a model of that kind, which needs no weights: --config FOLDER"
        ) from None


def _kind(path: Path) -> str:
    """The Hub id of the model that a checkpoint is like, by the names and shapes of its weights.

    Raises:
        ModelNotFound: A LoRA, or no safetensors.
    """
    from diffusers.loaders.single_file_utils import fetch_diffusers_config
    from safetensors import SafetensorError
    from safetensors.torch import load_file as read

    try:
        tensors = read(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelNotFound(f"cannot load {str(path)!r}: {error}; fetch it again") from None
    if any("lora" in name for name in tensors):
        raise ModelNotFound(f"{path} is a LoRA, not a model; give its base, and load it with pipe.load_lora_weights")
    return str(fetch_diffusers_config(tensors)["pretrained_model_name_or_path"])
