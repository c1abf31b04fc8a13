"""The parts of a diffusers folder, loaded whole, from safetensors alone, and without running code that lies in it.

`model_index.json` names a class for every component. Only classes of diffusers and transformers are taken, and each is
told not to trust what it finds: the processors of transformers would otherwise ask on the terminal. What can be refused
by reading the folder's JSON files is refused before anything is imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from erasers.files.reading import read_json

INDEX = "model_index.json"
_LIBRARIES = ("diffusers", "transformers")
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(\.(?P<variant>[\w-]+?))?(-\d{5}-of-\d{5})?\.safetensors")
# Buffers that older versions of transformers saved, and that the models now make themselves.
_HARMLESS = re.compile(r"(^|\.)(position_ids|inv_freq)$")
_ENDINGS = (".safetensors", ".safetensors.index.json")
# Beside a text model in checkpoints of the whole it was taken from; no part of its states.
_OTHER_HEADS = ("lm_head", "cls", "logit_scale", "text_projection", "visual_projection", "vision_model")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack")
_CONVERT = (
    "load it with diffusers where you trust it, and write it anew: "
    "DiffusionPipeline.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
)


class ModelNotFound(OSError):
    """A model that cannot be loaded; the message is one line with the reason and the next step."""


def read_index(folder: Path) -> dict[str, Any]:
    """The content of `model_index.json`.

    Raises:
        ModelNotFound: It is no JSON object.
        FileNotFoundError: There is none.
    """
    return _read_table(folder / INDEX)


def pipeline_class(folder: Path, index: Mapping[str, Any]) -> Any:
    """The class of diffusers that the index names.

    Raises:
        ModelNotFound: A class of the folder's own, one that diffusers does not have, or one that fetches others.
    """
    import diffusers

    name = index.get("_class_name")
    if not isinstance(name, str):
        why = "its pipeline is code of its own, which is not run; if erasers saved it, fetch it and load the folder"
        raise refusal(folder, why)
    cls = getattr(diffusers, name, None) if _NAME.fullmatch(name) else None
    if not (isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline)):
        raise refusal(
            folder, f"its pipeline is a {name[:80]!r}, which this version of diffusers does not have; upgrade it"
        )
    if getattr(cls, "_load_connected_pipes", False):
        raise refusal(folder, f"a {name} fetches further models by itself; load these one by one")
    return cls


def component_classes(folder: Path, index: Mapping[str, Any], pipeline: Any) -> dict[str, Any]:
    """The class of every component that the index names, when all of them are classes of the two libraries.

    Args:
        folder: For messages.
        index: What `read_index` gave.
        pipeline: The class of the pipeline.

    Raises:
        ModelNotFound: A component is code of the folder's own, or of a library that is not known.
    """
    modules = {*_required(pipeline), *pipeline._optional_components}
    entries = {name: value for name, value in index.items() if not name.startswith("_") and value is not None}
    named = {name: value for name, value in entries.items() if name in modules or _is_named(value)}
    for name, value in named.items():
        if not _NAME.fullmatch(name) or not _is_stock(value):
            raise refusal(
                folder,
                f"its {name[:60]!r} is {json.dumps(value)[:80]}, code of its own, which is not run; expected a class "
                "of diffusers or transformers",
            )
    return {name: _find_class(folder, *value) for name, value in named.items() if value[0] is not None}


def absent_components(index: Mapping[str, Any], pipeline: Any) -> dict[str, None]:
    """The components that a pipeline was saved without although its class asks for them, as SD3 may be without T5."""
    return {name: None for name in _required(pipeline) if index.get(name) == [None, None]}


def refuse_code_and_pickles(folder: Path, names: Iterable[str]) -> None:
    """Refuse component folders that would bring in more than their safetensors.

    Args:
        folder: The folder of the pipeline.
        names: Its components.

    Raises:
        ModelNotFound: An adapter that names another model, kernels to fetch, or an index of weights that names a
            pickle or a file elsewhere.
    """
    for subfolder in (folder / name for name in names):
        if (subfolder / "adapter_config.json").exists():
            raise refusal(
                folder,
                f"{subfolder.name} holds an adapter_config.json, which would load another model in its "
                "place; remove it, and load the adapter with pipe.load_lora_weights",
            )
        for path in sorted({*subfolder.glob("config.json"), *subfolder.glob("*index*.json")}):
            content = _read_table(path)
            kernel = next((value for value in _attention(content) if "/" in str(value)), None)
            if kernel is not None:
                raise refusal(
                    folder,
                    f"{subfolder.name}/{path.name} asks for the kernel {str(kernel)[:80]!r}, code that "
                    "is not run; remove that entry",
                )
            for file in _shards(content):
                if not isinstance(file, str) or Path(file).name != file or not file.endswith(_ENDINGS):
                    raise refusal(
                        folder,
                        f"{subfolder.name}/{path.name} names {str(file)[:80]!r} as a file of weights; "
                        f"expected safetensors beside it: pickles can run code; {_CONVERT}",
                    )


def load_component(cls: Any, folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
    """One component.

    Args:
        cls: Its class.
        folder: Where it lies.
        dtype: Type of the weights, where it has any.
        variant: Of the files of weights; see `weights_variant`.

    Raises:
        ModelNotFound: Weights are missing, are left over, or have other shapes than the model.
    """
    from diffusers import ModelMixin
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    if not issubclass(cls, nn.Module):
        # These two read tokenizers and configurations by name, and ask about code they find unless they are told.
        distrust = {"trust_remote_code": False} if issubclass(cls, (ProcessorMixin, PreTrainedTokenizerBase)) else {}
        return cls.from_pretrained(str(folder), local_files_only=True, **distrust)
    own = {"torch_dtype": dtype} if issubclass(cls, ModelMixin) else {"dtype": dtype, "trust_remote_code": False}
    fixed = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    model, info = cls.from_pretrained(str(folder), variant=variant, **fixed, **own)
    check_whole(model, folder, info)
    return model


def empty_component(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """One component on the meta device, by its configuration alone: no weights are read."""
    from diffusers import ModelMixin

    if not issubclass(cls, nn.Module):
        return load_component(cls, folder, dtype, None)
    with torch.device("meta"):
        if issubclass(cls, ModelMixin):
            model: Any = cls.from_config(cls.load_config(str(folder), local_files_only=True))
        else:
            model = cls(cls.config_class.from_pretrained(str(folder), local_files_only=True))
    return model.to(dtype).eval()


def check_whole(model: nn.Module, source: Path, info: Mapping[str, Any]) -> None:
    """Refuse a model some of whose weights did not come from its file, or whose file holds weights for another.

    Args:
        model: The model.
        source: Its folder or file, for messages.
        info: What `from_pretrained` says with `output_loading_info`.

    Raises:
        ModelNotFound: Names the weights.
    """
    mismatched = [key[0] if isinstance(key, (tuple, list)) else key for key in info.get("mismatched_keys") or ()]
    absent = [name for name, tensor in _tensors(model) if tensor.is_meta]
    faults = {
        "lacks": {*(info.get("missing_keys") or ()), *absent},
        "holds, without a place in the model,": _left_over(model, info.get("unexpected_keys") or ()),
        "holds in another shape": mismatched,
        "holds damaged": info.get("error_msgs") or (),
    }
    for fault, names in faults.items():
        wrong = sorted(str(name) for name in names if not _HARMLESS.search(str(name)))
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ModelNotFound(
                f"cannot load {str(source)!r} as {type(model).__name__}: it {fault} {', '.join(wrong[:3])[:200]}{more}"
                "; fetch it again, or upgrade transformers and diffusers"
            )


def _left_over(model: nn.Module, names: Iterable[str]) -> list[str]:
    heads = [head for head in _OTHER_HEADS if not hasattr(model, head)]
    return [name for name in names if str(name).partition(".")[0] not in heads]


def weights_variant(folder: Path, variant: str | None) -> str | None:
    """The variant in which the weights of a component are loaded.

    Args:
        folder: Of the component.
        variant: The one asked for; plain weights stand in where the component has no such files.

    Raises:
        ModelNotFound: Only pickles, or weights of several variants and none asked for.
    """
    files = [match for path in folder.glob("*.safetensors") if (match := _WEIGHTS.fullmatch(path.name))]
    present = {match["variant"] for match in files}
    if variant in present or None in present:
        return variant if variant in present else None
    others = sorted(str(name) for name in present - {VARIANT})
    if variant is None and len(others) == 1:
        return others[0]
    if others:
        wanted = "without a variant" if variant is None else f"of the variant {variant!r}"
        why = f"expected weights {wanted}, got those of {', '.join(others)[:200]}; choose one: --variant {others[0]}"
        raise refusal(folder, why)
    if pickled(folder):
        raise refusal(folder, f"its weights are pickles, which can run code and are not read; {_CONVERT}")
    return variant


def pickled(folder: Path) -> list[Path]:
    """The files of a folder that are pickles by their name."""
    return sorted(path for pattern in _PICKLES for path in folder.glob(pattern))


def _required(pipeline: Any) -> list[str]:
    """What a class of pipelines cannot be made without, those components aside that diffusers calls optional."""
    parameters = signature(pipeline.__init__).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.default is Parameter.empty]
    return [name for name in names if name not in pipeline._optional_components]


def _is_named(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(text, str) for text in value)


def _is_stock(value: Any) -> bool:
    if value == [None, None]:
        return True
    if not isinstance(value, list) or len(value) != 2:
        return False
    texts = all(isinstance(text, str) and _NAME.fullmatch(text) for text in value)
    # The module of a pipeline may hold components of its own, e.g. `stable_diffusion`.
    return texts and (value[0] in _LIBRARIES or find_spec(f"diffusers.pipelines.{value[0]}") is not None)


def _find_class(folder: Path, library: str, name: str) -> Any:
    import diffusers
    import transformers
    from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, get_class_obj_and_candidates

    # No folder is given here, so that a file of it cannot stand in for the library.
    own = library not in _LIBRARIES
    cls, _ = get_class_obj_and_candidates(library, name, ALL_IMPORTABLE_CLASSES, diffusers.pipelines, own)
    of_diffusers = (diffusers.ModelMixin, diffusers.SchedulerMixin)
    of_transformers = (transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase, transformers.ProcessorMixin)
    pictures = (transformers.ImageProcessingMixin, transformers.FeatureExtractionMixin)
    if not isinstance(cls, type) or not issubclass(cls, (*of_diffusers, *of_transformers, *pictures)):
        raise refusal(folder, f"{library}.{name} is no class that is loaded from a folder; fetch it again")
    return cls


def _attention(content: Mapping[str, Any]) -> Iterator[Any]:
    """Entries at any depth that name an implementation of attention or of experts."""
    level: list[Any] = [content]
    while level:
        for key, value in level.pop().items():
            if isinstance(value, dict):
                level.append(value)
            elif re.fullmatch(r"_?(attn|attention|experts)_implementation(_internal)?", str(key)):
                yield value


def _shards(content: Mapping[str, Any]) -> list[Any]:
    """Names of files of weights: in an index, or in the configuration of a model."""
    shards = content.get("weight_map", {})
    named = [content[key] for key in ("transformers_weights",) if content.get(key) is not None]
    return list(dict.fromkeys(map(_hashable, shards.values() if isinstance(shards, dict) else [shards]))) + named


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str) else repr(value)


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _read_table(path: Path) -> dict[str, Any]:
    try:
        table = read_json(path)
    except ValueError as error:
        raise refusal(path.parent, str(error)) from None
    if not isinstance(table, dict):
        raise refusal(path.parent, f"expected {path.name} as a JSON object; fetch it again")
    return table


def refusal(folder: Path, why: str) -> ModelNotFound:
    """The error of a folder that is not loaded."""
    return ModelNotFound(f"cannot load {str(folder)!r}: {why}")


VARIANT = "unerased"
