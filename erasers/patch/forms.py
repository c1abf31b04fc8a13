"""The forms of a patch other than weights edited in place: files that stock diffusers and web UIs load."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from erasers.files import tensors as patch_file
from erasers.files.tensors import PatchError
from erasers.models.components import component
from erasers.patch import kohya
from erasers.patch.edits import Edit
from erasers.patch.kohya import Place
from erasers.version import library_version

LORA_FILE = "pytorch_lora_weights.safetensors"
DELTA_FILE = "delta_weights.safetensors"
FORMS = ("peft", "kohya")

# What a plain `load_lora_weights(folder)` fills; `transformer_2` of Wan, for one, is passed over without a word.
_LOADED = ("unet", "transformer", "text_encoder", "text_encoder_2")
# Other layers of a text encoder make diffusers fail when no attention layer comes with them.
_TEXT_LAYER = re.compile(r"self_attn\.(q|k|v|out)_proj$")

_KEY = re.compile(r"(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_down|lora_up)\.weight")
_PAIRS = ({"lora_A", "lora_B"}, {"lora_down", "lora_up"})


def check_form(form: str) -> None:
    """Refuse a form that LoRAs are not written in.

    Raises:
        PatchError: It is none of `FORMS`.
    """
    if form not in FORMS:
        raise PatchError(f"expected a LoRA of form {' or '.join(FORMS)}, got {form!r}")


def layer_names(edits: Mapping[str, Edit], pipe: Any, form: str) -> dict[str, Place]:
    """Where the layer of each edited weight stands in a LoRA, by parameter.

    Raises:
        PatchError: A dense edit, or a layer that has no place in this form.
    """
    layers = {parameter: _peft_name(pipe, _layer(parameter, edit)) for parameter, edit in edits.items()}
    if form == "peft":
        return {parameter: Place(layer, 0, ()) for parameter, layer in layers.items()}
    where = kohya.places(pipe, layers.values())
    return {parameter: where[layer] for parameter, layer in layers.items()}


def write_lora(
    edits: Mapping[str, Edit], base: Mapping[str, torch.Tensor], where: Mapping[str, Place], folder: Path, form: str
) -> Path:
    """Write edits of these base weights as a LoRA in which their layers stand there; see `Patch.to_lora`."""
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for parameter, edit in edits.items():
        down, up = edit.factors(base[parameter])
        factors[parameter] = (down.float().cpu(), up.float().cpu())
    tensors = kohya.fused(factors, where) if form == "kohya" else _peft_tensors(factors, where)
    return _write(folder, LORA_FILE, tensors, {"format": "pt"})


def write_delta(
    edits: Mapping[str, Edit], base: Mapping[str, torch.Tensor], meta: Mapping[str, Any], folder: Path
) -> Path:
    """Write the edited weights themselves, with what the metadata of the patch says of them; see `Patch.to_delta`.

    Raises:
        PatchError: Values that the dtype of the weights cannot hold.
    """
    weights = {name: edit.apply(base[name], 1.0).cpu() for name, edit in edits.items()}
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise PatchError(f"the edited {name} does not fit {weight.dtype}; load the pipeline in float32")
    kept = {key: meta[key] for key in ("method", "config", "concepts")}
    own = {"form": "delta", "library": library_version(), **kept}
    # A header of several keys would have them in another order with every run.
    return _write(folder, DELTA_FILE, weights, {patch_file.KEY: json.dumps(own, sort_keys=True)})


def load_lora(pipe: Any, path: str | Path, *, adapter_name: str = "erasure") -> Any:
    """Load a LoRA with stock `load_lora_weights`, and make sure that all of it was loaded and is on.

    diffusers passes over what it does not recognise, and may return without an error having loaded nothing. LoRAs that
    were on stay on, which stock loading would change. **Whatever is loaded after this switches the erasure off**, until
    `pipe.set_adapters([...])` names both; a patch that is applied, or its weights (`Patch.to_delta`), cannot be
    switched off.

    Args:
        pipe: A diffusers pipeline.
        path: A safetensors file, or a folder with `pytorch_lora_weights.safetensors`. Its names are those of
            `Patch.to_lora`, in either form.
        adapter_name: Name of the adapter.

    Returns:
        The same pipe.

    Raises:
        PatchError: No LoRA, one for another model, or one that diffusers loads in part; the pipeline is as it was.
        FileNotFoundError: No such file.
    """
    file = _lora_file(Path(path))
    if not hasattr(pipe, "load_lora_weights"):
        raise PatchError(f"stock diffusers has no LoRA loader for {type(pipe).__name__}; apply the patch instead")
    names = _layers_in(file)
    source: Any = str(file.parent)
    options = {"weight_name": file.name, "use_safetensors": True}
    if names[0].startswith("lora_") and not kohya.stock_reads(pipe):
        _layers_of(pipe, file, names)
        source, options = kohya.unfused(pipe, load_file(file)), {}
        names = sorted({name.rpartition(".lora_")[0] for name in source})
    layers = _layers_of(pipe, file, names)
    loaded = {name for names in pipe.get_list_adapters().values() for name in names}
    if adapter_name in loaded:
        raise PatchError(f"expected an adapter name that is free, got {adapter_name!r}, which this pipeline carries")
    active = pipe.get_active_adapters() if loaded else []
    try:
        pipe.load_lora_weights(source, adapter_name=adapter_name, **options)
        missing = [name for name in layers if adapter_name not in getattr(_find(pipe, name), "lora_A", ())]
        if missing:
            raise PatchError(f"diffusers did not load {missing[0]} ({len(missing)} of {len(layers)} layers)")
    except Exception as error:
        _unload(pipe, adapter_name, loaded, active)
        raise PatchError(f"cannot load {file.name} into {type(pipe).__name__}: {error}") from error
    _activate(pipe, [*active, adapter_name])
    return pipe


def check_folder(folder: Path) -> None:
    """Refuse a folder that can neither be written nor created.

    Raises:
        FileExistsError: A file.
        FileNotFoundError: The folder above it does not exist.
    """
    if folder.is_file():
        raise FileExistsError(f"expected a folder, got the file {folder}")
    if not folder.absolute().parent.is_dir():
        raise FileNotFoundError(f"expected an existing folder for {folder.name}, got {folder.parent}; create it first")


def _write(folder: Path, name: str, tensors: dict[str, torch.Tensor], header: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    patch_file.write_tensors(folder / name, tensors, header)
    return folder / name


def _layer(parameter: str, edit: Edit) -> str:
    """Name of the linear layer whose weight is edited."""
    if edit.form == "dense":
        raise PatchError(
            f"a LoRA holds low-rank edits of linear layers, the edit of {parameter} is dense; write the edited "
            "weights instead: patch.to_delta(pipe, folder)"
        )
    return parameter.removesuffix(".weight")


def _peft_name(pipe: Any, layer: str) -> str:
    """The layer's name in the LoRA, when stock diffusers loads it."""
    name, _, path = layer.partition(".")
    loads = hasattr(pipe, "load_lora_weights") and name in _LOADED and name in pipe._lora_loadable_modules
    if loads and name.startswith("text_encoder"):
        loads = _TEXT_LAYER.search(path) is not None
    elif loads:
        loads = hasattr(component(pipe, name), "load_lora_adapter")
    if not loads:
        raise PatchError(
            f"stock diffusers loads no LoRA into {layer} of {type(pipe).__name__}; write the edited weights instead: "
            "patch.to_delta(pipe, folder)"
        )
    return layer


def _peft_tensors(factors: kohya.Factors, where: Mapping[str, Place]) -> dict[str, torch.Tensor]:
    # diffusers takes rank as alpha where there is none; it refuses `alpha` keys in this form for some families.
    tensors: dict[str, torch.Tensor] = {}
    for parameter, (down, up) in factors.items():
        name = where[parameter].name
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = down.clone(), up.clone()
    return tensors


def _lora_file(path: Path) -> Path:
    file = path / LORA_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"expected a LoRA file, or a folder with {LORA_FILE}, got {path}")
    return file


def _layers_in(file: Path) -> list[str]:
    """The layers that a LoRA file names, by their names there.

    Raises:
        PatchError: It names none, or others.
    """
    parts: dict[str, set[str]] = {}
    for name in _tensor_names(file):
        match = _KEY.fullmatch(name)
        if match:
            parts.setdefault(match["layer"], set()).add(match["part"])
        elif not name.endswith(".alpha"):
            raise PatchError(f"expected {file.name} as a LoRA, got the tensor {name!r}")
    halves = [name for name in parts if parts[name] not in _PAIRS]
    if halves or not parts:
        raise PatchError(f"expected {file.name} as a LoRA with both factors of each layer, got {halves or 'none'}")
    return sorted(parts)


def _layers_of(pipe: Any, file: Path, names: Iterable[str]) -> list[str]:
    """The layers of the pipeline that are meant.

    Raises:
        PatchError: It has no such layer.
    """
    known = kohya.named_layers(pipe)
    layers = sorted({layer for name in names for layer in known.get(name, {name: None})})
    for layer in layers:
        if _find(pipe, layer) is None:
            raise PatchError(
                f"the LoRA is for another model: {file.name} names {layer}, {type(pipe).__name__} has none"
            )
    return layers


def _tensor_names(file: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    # diffusers reads a file of any other name as a pickle.
    if file.suffix != ".safetensors":
        raise PatchError(f"expected a LoRA in a .safetensors file, got {file.name}")
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise PatchError(f"expected {file.name} as a safetensors file, got something else: {error}") from error


def _find(pipe: Any, layer: str) -> torch.nn.Module | None:
    name, _, path = layer.partition(".")
    try:
        return component(pipe, name).get_submodule(path)
    except (ValueError, AttributeError):
        return None


def _unload(pipe: Any, adapter_name: str, others: Iterable[str], active: list[str]) -> None:
    """Take off one adapter, as if it had never been loaded."""
    if others:
        _activate(pipe, active)
        pipe.delete_adapters(adapter_name)
    else:
        pipe.unload_lora_weights()


def _activate(pipe: Any, names: list[str]) -> None:
    """Switch on these adapters and no others; their scales stay as they are."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name in pipe._lora_loadable_modules:
        model = getattr(pipe, name, None)
        for module in () if model is None else model.modules():
            if isinstance(module, BaseTunerLayer):
                module.set_adapter(names)
