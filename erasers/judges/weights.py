"""The files behind judges: where they are, what they hash to, and models that are loaded whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from erasers.files.hashing import file_sha256
from erasers.files.hub import REPOSITORY, hub_errors
from erasers.files.reading import at_home
from erasers.models.loading import refuse_code_and_pickles

_FILES = ("*.json", "*.safetensors")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def file_hashes(folder: Path, patterns: Sequence[str] = _FILES) -> dict[str, str]:
    """File name -> sha256 of the folder's own files that match."""
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.name: file_sha256(path) for path in sorted(paths)}


def model_folder(model: str | Path, revision: str | None, needs: Sequence[str]) -> Path:
    """The folder of a model.

    Args:
        model: A local folder, or as text a Hub id `user/repo`.
        revision: The commit on the Hub, which a Hub id must have: a branch moves, and the judge with it.
        needs: Files that must be in it, beside weights in safetensors.

    Raises:
        ValueError: A Hub id without a commit, or a folder with one.
        FileNotFoundError: No such model, the Hub cannot be reached, or files are missing.
        ModelNotFound: The folder would bring in more than its safetensors.
    """
    folder = at_home(model)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"expected a Hub id with the revision {revision!r}, got the folder {folder}, which has none"
            )
    else:
        folder = _fetch(model, revision)
    missing = [name for name in needs if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("weights as .safetensors (pickled ones are not read)")
    if missing:
        raise FileNotFoundError(f"expected a model in {folder}, which lacks {' and '.join(missing)}")
    refuse_code_and_pickles(folder, ["."])
    return folder


def load_whole(cls: Any, folder: Path, device: str) -> Any:
    """A transformers model in float32, ready to use; never runs code from the folder.

    Args:
        cls: Its class, or an auto class.
        folder: As `model_folder` gives it.
        device: Where it goes.

    Raises:
        ValueError: The file lacks some of the model's weights, which would be left random.
    """
    model, info = cls.from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        dtype=torch.float32,
    )
    missing = sorted(info["missing_keys"])
    if missing:
        names = ", ".join(missing[:4])
        raise ValueError(
            f"expected all weights of {type(model).__name__} in {folder}, which lacks {names}; they would be random"
        )
    return model.to(device).eval().requires_grad_(False)


def image_processor(folder: Path) -> Any:
    """The transformers image processor of a folder, always the one that works on PIL pictures."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)


def _fetch(model: str | Path, revision: str | None) -> Path:
    if isinstance(model, Path) or not REPOSITORY.fullmatch(model):
        raise FileNotFoundError(
            f"expected the folder of a model or a Hub id user/repo, got {model}, which does not exist"
        )
    if revision is None or not _COMMIT.fullmatch(revision):
        raise ValueError(
            f"expected revision= with the commit of {model} in 40 hex digits (or a folder), got {revision!r}; a branch "
            "moves, and the judge with it"
        )
    from huggingface_hub import snapshot_download

    with hub_errors(
        f"cannot load the model {model!r}",
        unknown="no such public repository or commit on the Hub; check the spelling, or log in if it is private",
        offline="no such folder, and the Hub cannot be reached; connect, or give a folder",
    ):
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(_FILES)))
