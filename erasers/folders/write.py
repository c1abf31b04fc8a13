"""Folders of erased pipelines.

Where weights hold all that the patches do, that is a plain diffusers folder with `erasure.json` beside the weights.
What hooks do they do not hold, so that a folder of a pipeline with hooks must not load without them. Its weights are a
variant that stock diffusers does not look for, and its class is known to nobody but a file in the folder:

    model_index.json                 _class_name: [erased_stable_diffusion, ErasedStableDiffusionPipeline]
    erased_stable_diffusion.py       that class: `dropin.Erased` before the stock class
    unet/*.unerased.safetensors      weights, with the edits of weights baked in
    erasure/erasure.json             the record
    erasure/patches.d/0.safetensors  the hooks of each patch of which some run, as a patch for these weights
    erasure/erasers_patches.py       names the class that reads them, as a component of the pipeline

Stock diffusers fetches the whole of a component's folder from the Hub when no weights lie directly in it, and takes
every name in it apart at its dots: hence the folder `patches.d`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from erasers.files import tensors as patch_file
from erasers.files.atomic import temporary_beside
from erasers.files.hashing import tensor_hashes
from erasers.files.reading import read_json
from erasers.folders.record import COMPONENT, PATCHES, STRENGTH, entry_of, write_record
from erasers.models.components import component, find_parameter
from erasers.models.families import UnsupportedPipeline
from erasers.models.loading import VARIANT
from erasers.patch import Patch, PatchError, applied_patches, stack
from erasers.patch.hooks import Hook
from erasers.patch.sketch import sketches

_MODULE = "erasers_patches"
_PREFIX = "Erased"
_COMPONENT_SOURCE = '''"""The patches of this folder, read by the library erasers."""

from erasers.dropin import Erasure

__all__ = ["Erasure"]
'''
_PIPELINE_SOURCE = '''"""{stock} that is erased while it runs. Needs the library erasers; see help("erasers.dropin")."""

from diffusers import {stock}

from erasers.dropin import Erased


class {prefix}{stock}(Erased, {stock}):
    """{stock} with the component `erasure`; it cannot be made without one."""
'''


def save(pipe: Any, folder: str | Path, patches: Sequence[Patch] = ()) -> Path:
    """See `ErasedPipeline.save_pretrained`."""
    target = check_free_folder(folder)
    _refuse_adapters(pipe)
    carried = _carried(pipe, patches)
    temporary = temporary_beside(target)
    try:
        _write(pipe, temporary, carried)
        if target.exists():
            target.rmdir()
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def stock_class(cls: type) -> type:
    """The class of diffusers that a pipeline class is or extends.

    Raises:
        UnsupportedPipeline: None.
    """
    stock = next((base for base in cls.__mro__ if base.__module__.startswith("diffusers.")), None)
    if stock is None:
        raise UnsupportedPipeline(
            f"expected a pipeline of diffusers, got {cls.__name__}; a model of transformers is saved by its own "
            "save_pretrained, which has the edits of weights but no hooks"
        )
    return stock


def erased_stock(folder: Path) -> type | None:
    """The stock class of a folder whose pipeline is erased while it runs; None for any other folder.

    Raises:
        PatchError: A class that diffusers does not have.
    """
    import diffusers

    try:
        name = read_json(folder / "model_index.json")["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(name, list) or len(name) != 2 or not str(name[1]).startswith(_PREFIX):
        return None
    stock = getattr(diffusers, str(name[1]).removeprefix(_PREFIX), None)
    if not (isinstance(stock, type) and issubclass(stock, diffusers.DiffusionPipeline)):
        raise PatchError(f"{folder} is a {name[1]!r:.80}, which this version of diffusers does not have; upgrade it")
    return stock


def stand_in(stock: Any) -> Any:
    """A class that reads the index of such a folder as that of the stock class, so that no code in it is run."""

    def load_config(cls: type, *args: Any, **options: Any) -> dict[str, Any]:
        config = stock.load_config(*args, **options) | {"_class_name": stock.__name__}
        return {key: value for key, value in config.items() if key != COMPONENT}

    return type(stock.__name__, (stock,), {"load_config": classmethod(load_config)})


def pipeline_file(stock: type) -> tuple[str, str]:
    """Name and source of the single file that makes an erased pipeline of a stock class."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z0-9])", "_", stock.__name__.removesuffix("Pipeline")).lower()
    stem = f"{_PREFIX.lower()}_{words}"
    text = _PIPELINE_SOURCE.format(stock=stock.__name__, prefix=_PREFIX)
    return f"{stem}.py", text


def check_free_folder(folder: str | Path) -> Path:
    """The absolute path of a folder that can be written.

    Raises:
        FileExistsError: It is not empty, or a file.
        FileNotFoundError: The folder above does not exist.
    """
    target = Path(folder).absolute()
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        kind = "a file" if target.is_file() else "a folder that is not empty"
        raise FileExistsError(f"expected a new or empty folder, got {folder}, {kind}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"expected an existing folder for {target.name}, got {target.parent}; create it first")
    return target


@contextmanager
def quiet() -> Iterator[None]:
    """Errors only: what the loaders would log is in the exception or of no use."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = (diffusers_logging, transformers_logging)
    before = [logger.get_verbosity() for logger in loggers]
    try:
        for logger in loggers:
            logger.set_verbosity_error()
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.set_verbosity(level)


def _write(pipe: Any, folder: Path, carried: Sequence[tuple[Patch, float]]) -> None:
    from diffusers import DiffusionPipeline

    stock, running = stock_class(type(pipe)), _running(pipe, carried)
    extended = COMPONENT in pipe.config
    if running and type(pipe) is not stock and not extended:
        raise ValueError(f"expected a pipeline class of diffusers to save with hooks, got {type(pipe).__name__}")
    with quiet():
        # An erased class has a `save_pretrained` of its own, which ends here.
        DiffusionPipeline.save_pretrained(pipe, folder, safe_serialization=True, variant=VARIANT if running else None)
    if extended:
        # diffusers has just struck out a component that it does not know how to save.
        pipe.register_modules(**{COMPONENT: getattr(pipe, COMPONENT)})
    entries = [entry_of(patch, strength) for patch, strength in carried]
    if running:
        _write_hooks(folder, stock, running, entries)
        return
    if extended:
        _edit_index(folder, stock.__name__, None)
    write_record(folder, folder, entries)


def _write_hooks(folder: Path, stock: type, running: dict[str, Patch], entries: Sequence[dict[str, Any]]) -> None:
    name, source = pipeline_file(stock)
    (folder / name).write_text(source, encoding="utf-8")
    _edit_index(folder, [name.removesuffix(".py"), _PREFIX + stock.__name__], [_MODULE, "Erasure"])
    parts = folder / COMPONENT / PATCHES
    parts.mkdir(parents=True)
    for number, (digest, patch) in enumerate(running.items()):
        entry = next(entry for entry in entries if entry["sha256"] == digest)
        header = {STRENGTH: repr(float(entry["strength"]))}
        patch_file.write(parts / f"{number}.safetensors", patch.tensors, patch.meta, header)
        entry["hooks"] = patch.digest
    (folder / COMPONENT / f"{_MODULE}.py").write_text(_COMPONENT_SOURCE, encoding="utf-8")
    write_record(folder, folder / COMPONENT, entries)


def _carried(pipe: Any, patches: Sequence[Patch]) -> list[tuple[Patch, float]]:
    """The patches that a pipeline carries, held against those it is said to carry.

    Raises:
        PatchError: One is missing, one too many, or one that is lost.
    """
    present = {entry.digest: entry for entry in stack.applied(pipe)}
    lost = [patch for patch in patches if patch.digest not in present]
    lost += [entry.patch for entry in present.values() if stack.is_lost(pipe, entry)]
    if lost:
        raise PatchError(
            f"expected a pipeline that carries {lost[0]!r}, got one that does not, or not in all its parts, or whose "
            "weights were loaded anew since; load the pipeline and apply the patch again"
        )
    extra = [entry.patch for entry in present.values() if patches and entry.digest not in {p.digest for p in patches}]
    if extra:
        raise PatchError(f"the pipeline carries {extra[0]!r}, too; name all of its patches, or none")
    return applied_patches(pipe)


def _running(pipe: Any, carried: Sequence[tuple[Patch, float]]) -> dict[str, Patch]:
    """By the digest of each patch that has hooks which run: a patch of these alone, for the weights as they are now."""
    hooks: dict[str, list[Hook]] = {}
    for entry, hook in stack.running(pipe):
        hooks.setdefault(entry.digest, []).append(hook)
    return {patch.digest: _remainder(pipe, patch, hooks[patch.digest]) for patch, _ in carried if patch.digest in hooks}


def _remainder(pipe: Any, patch: Patch, hooks: Sequence[Hook]) -> Patch:
    tensors = {
        f"hook/{hook.target}/{hook.kind}/{part}": tensor for hook in hooks for part, tensor in hook.parts.items()
    }
    weights = {name: weight for name in patch.meta["base"] if (weight := _plain_weight(pipe, name)) is not None}
    for name in {hook.component for hook in hooks} - {name.partition(".")[0] for name in weights}:
        weights |= _first_weight(pipe, name)
    base = tensor_hashes(weights)
    if base == patch.meta["base"]:
        return Patch(tensors, patch.meta)
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    return Patch(tensors, {**patch.meta, "base": base, "sketches": sketches(weights), "base_dtype": dtype})


def _first_weight(pipe: Any, name: str) -> dict[str, torch.Tensor]:
    """One weight of a component that no fingerprint of the patch names, for it was forced on.

    Raises:
        PatchError: All are quantised or away.
    """
    for path, _ in component(pipe, name).named_parameters():
        weight = _plain_weight(pipe, f"{name}.{path}")
        if weight is not None:
            return {f"{name}.{path}": weight}
    raise PatchError(f"expected a weight of {name} in memory to know it by, got none; load the pipeline unquantised")


def _plain_weight(pipe: Any, name: str) -> torch.Tensor | None:
    try:
        return find_parameter(pipe, name, linear=False).data
    except ValueError:
        return None


def _edit_index(folder: Path, name: str | list[str], component: list[str] | None) -> None:
    path = folder / "model_index.json"
    index = read_json(path) | {"_class_name": name, COMPONENT: component}
    if component is None:
        del index[COMPONENT]
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _refuse_adapters(pipe: Any) -> None:
    for name, value in pipe.components.items():
        if isinstance(value, torch.nn.Module) and any(hasattr(layer, "base_layer") for layer in value.modules()):
            raise ValueError(
                f"{name} carries an adapter that is not fused; call pipe.fuse_lora(); pipe.unload_lora_weights() first"
            )
