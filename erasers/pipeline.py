"""Stock diffusers pipelines, loaded from the package, a folder or the Hub, with patches applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from erasers import worlds
from erasers.files.hub import reason
from erasers.files.reading import at_home, read_json
from erasers.folders import write as folders
from erasers.folders.record import COMPONENT, RECORD, check_folder, read_hooks, recorded
from erasers.models import loading, single_file
from erasers.models.loading import VARIANT, ModelNotFound
from erasers.models.model_pipeline import ModelPipeline
from erasers.patch import Patch, PatchError
from erasers.patch.find import find_patch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

DTYPES = ("float32", "float16", "bfloat16", "float64")
_FIXED = {"use_safetensors": True, "trust_remote_code": False, "custom_pipeline": None}
_FETCHING = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")
_BARE = ("*.json", "*.txt", "*.model", "*.jinja")
"""What a model on the Hub has beside its weights: configurations and tokenizers."""
_PLACING = ("device_map", "max_memory", "offload_folder", "offload_state_dict", "quantization_config")


def load_pipeline(
    model: str | Path = worlds.DEFAULT,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> DiffusionPipeline:
    """Load a stock diffusers pipeline: an embedded model, a folder, a checkpoint in one file, or a Hub id.

    Only safetensors are read and no code of the model is run. A folder from `ErasedPipeline.save_pretrained` loads
    erased, also where that takes hooks.

    Args:
        model: `shapes` for the embedded model, a diffusers folder (`./shapes` for one of that name), a
            `.safetensors` file with the names of the original code, or a Hub id.
        dtype: Type of the weights, as torch.dtype or its name; float32 when None.
        device: Where the pipeline goes; it stays on the CPU when None. On "meta" it has shapes and no weights: of a
            folder or a model on the Hub only configurations and tokenizers are read.
        **options: Passed on to `DiffusionPipeline.from_pretrained`, e.g. `revision` or components. `variant` names the
            files of weights; without it, a component that has weights of one variant alone is loaded from these.
            `config` is the diffusers folder of a model like the one in the file; by itself, it comes from the Hub.

    Raises:
        ModelNotFound: No such model, no connection, or files that cannot be read.
        ValueError: Unknown dtype, or an option that would load pickles or run foreign code.
    """
    for key, value in _FIXED.items():
        if options.get(key, value) != value:
            raise ValueError(
                f"expected {key}={value}, got {options[key]!r}; only safetensors and diffusers' own code load"
            )
    placing = next((key for key in _PLACING if options.get(key) is not None), None)
    if placing is not None or options.get("variant") == VARIANT:
        raise ValueError(
            f"expected no {placing or 'variant=' + repr(VARIANT)} here; load the pipeline with diffusers, a "
            "patch applies to that one, too"
        )
    source, kind = _locate(model), torch_dtype(dtype or "float32")
    try:
        with folders.quiet():
            bare = device is not None and torch.device(device).type == "meta"
            pipe = _load(source, kind, bare, **{key: value for key, value in options.items() if key not in _FIXED})
    except ModelNotFound:
        raise
    except Exception as error:
        # diffusers, transformers, safetensors and the Hub client raise a dozen unrelated types here.
        raise ModelNotFound(_explain(model, error)) from error
    return pipe if device is None else pipe.to(device)


def load_model(model: str | Path) -> ModelPipeline:
    """Load a model of transformers with its processor, in float32 on the CPU: an embedded one, or a folder.

    Only safetensors are read and no code of the model is run.

    Args:
        model: A name of `worlds.MODELS`, or a folder that `save_pretrained` of a model and of its processor wrote.

    Raises:
        ModelNotFound: No such model, or files that cannot be read.
    """
    import transformers

    folder = worlds.MODELS.get(str(model)) or at_home(str(model))
    if not (folder / "config.json").is_file():
        known = " or ".join(map(repr, worlds.MODELS))
        raise ModelNotFound(f"no model of transformers in {str(model)!r}; expected a folder or {known}")
    try:
        with folders.quiet():
            loading.refuse_code_and_pickles(folder.parent, [folder.name])
            name = str(*read_json(folder / "config.json")["architectures"])
            loaded = loading.load_component(getattr(transformers, name), folder, torch.float32, None)
            _read_generation(loaded, folder / "generation_config.json")
            safe = {"local_files_only": True, "trust_remote_code": False}
            processor = transformers.AutoProcessor.from_pretrained(str(folder), **safe)
    except ModelNotFound:
        raise
    except Exception as error:
        # transformers, tokenizers and safetensors raise many unrelated types here.
        absent = "it names files that are not in its folder"
        raise ModelNotFound(f"cannot load {str(model)!r}: {reason(error, unknown=absent, offline=absent)}") from error
    return ModelPipeline(loaded.eval(), processor)


def _read_generation(model: Any, file: Path) -> None:
    """Give a model what its `generate` asks for, which transformers saves but does not load."""
    if file.is_file() and (further := read_json(file).get("generation_kwargs")):
        model.generation_config.generation_kwargs = further


class ErasedPipeline:
    """Loads and saves stock pipelines with patches applied; it is never instantiated."""

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path = worlds.DEFAULT,
        patches: Sequence[Patch | str | Path] | Patch | str | Path = (),
        *,
        strength: float = 1.0,
        force: bool = False,
        **options: Any,
    ) -> DiffusionPipeline:
        """Load a pipeline and apply patches, in order.

        Args:
            base: As for `load_pipeline`.
            patches: Patches, files, folders that hold one, or Hub ids (`user/repo`, `user/repo/file.safetensors`, with
                `@revision` behind it if need be).
            strength: Scale of every patch.
            force: Apply patches that were fitted on other weights, too.
            **options: As for `load_pipeline`.

        Returns:
            A pipeline of the stock class, edited in place.

        Raises:
            PatchError: A patch that is damaged or does not fit.
            FileNotFoundError: No such patch.
            ModelNotFound: From `load_pipeline`.
        """
        loaded = as_patches(patches)
        refuse_twice(base, loaded)
        pipe = load_pipeline(base, **options)
        for patch in loaded:
            patch.apply(pipe, strength=strength, force=force)
        return pipe

    @staticmethod
    def save_pretrained(pipe: DiffusionPipeline, folder: str | Path, patches: Sequence[Patch] = ()) -> Path:
        """Write an erased pipeline as a diffusers folder. It appears whole or not at all.

        Weights are saved as they are now, edits baked in, with a record of the patches in `erasure.json`: that folder
        loads erased without this library. Hooks cannot be baked. A folder with some holds them beside the weights, and
        loads with this library (`load_pipeline`) or as

            DiffusionPipeline.from_pretrained(folder, variant="unerased", trust_remote_code=True)

        and fails to load in any other way, rather than give a pipeline that is not erased.

        Args:
            pipe: The pipeline, patches applied.
            folder: New or empty; the folder above it has to exist.
            patches: The patches that it carries, as a check; all that it does carry are recorded.

        Raises:
            FileExistsError: The folder is not empty, or a file.
            FileNotFoundError: The folder above does not exist.
            PatchError: The pipeline carries other patches than those given, or one only in part.
            ValueError: Adapters are loaded and not fused; diffusers would write weights that reload as noise.
        """
        return folders.save(pipe, folder, patches)


def as_patches(patches: Sequence[Patch | str | Path] | Patch | str | Path) -> list[Patch]:
    """Load the patches that are given by reference: a file, a folder that holds one, or a Hub id; see `find_patch`.

    Raises:
        FileNotFoundError: No such patch, or the Hub cannot be reached.
        PatchError: A damaged or foreign file.
    """
    several = [patches] if isinstance(patches, (Patch, str, Path)) else patches
    return [patch if isinstance(patch, Patch) else Patch.load(find_patch(patch)) for patch in several]


def refuse_twice(base: str | Path, patches: Sequence[Patch]) -> None:
    """Refuse patches that a saved folder carries already: their edits are in its weights.

    Raises:
        PatchError: Names the patch.
        ModelNotFound: No such folder.
    """
    carried = recorded(Path(_locate(base)))
    for patch in patches:
        if patch.digest in carried:
            raise PatchError(f"{base} carries {patch!r} already (see {RECORD}); load it without that patch")


def torch_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating-point type by name.

    Raises:
        ValueError: Not one of `DTYPES`.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"expected a dtype among {', '.join(DTYPES)}, got {name!r}")
    kind: torch.dtype = getattr(torch, name)
    return kind


def _load(source: str, dtype: torch.dtype, bare: bool, variant: str | None = None, **options: Any) -> DiffusionPipeline:
    from diffusers import DiffusionPipeline

    folder = Path(source)
    if folder.is_file():
        return single_file.load_file(folder, dtype, variant=variant, **options)
    if "config" in options:
        raise ModelNotFound(f"expected a checkpoint in one .safetensors file for config=, got {source}")
    if "revision" in options and folder.exists():
        raise ModelNotFound(f"expected revision= for a model on the Hub alone, got {source}")
    check_folder(folder)
    stock = folders.erased_stock(folder)
    if stock is None:
        if not folder.is_dir():
            folder = _fetch_bare(source, options) if bare else _fetch(source, variant, options)
        index = loading.read_index(folder)
        stock = loading.pipeline_class(folder, index)
        parts = _load_parts(folder, index, stock, dtype, variant, options, bare=bare)
        return _assemble(DiffusionPipeline, folder, parts)
    patches = read_hooks(folder / COMPONENT)
    index = {name: value for name, value in loading.read_index(folder).items() if name != COMPONENT}
    parts = _load_parts(folder, index, stock, dtype, VARIANT, options)
    pipe = _assemble(folders.stand_in(stock), folder, parts)
    pipe.__class__ = stock
    for patch, strength in patches:
        patch.apply(pipe, strength=strength)
    return pipe


def _fetch(source: str, variant: str | None, options: Mapping[str, Any]) -> Path:
    from diffusers import DiffusionPipeline

    return Path(DiffusionPipeline.download(source, variant=variant, **{**options, "use_safetensors": True}))


def _fetch_bare(source: str, options: Mapping[str, Any]) -> Path:
    """The files of a model on the Hub without its weights."""
    from huggingface_hub import snapshot_download

    given = {key: value for key, value in options.items() if key in _FETCHING and key != "proxies"}
    return Path(snapshot_download(source, allow_patterns=list(_BARE), **given))


def _load_parts(
    folder: Path,
    index: Mapping[str, Any],
    stock: Any,
    dtype: torch.dtype,
    variant: str | None,
    options: Any,
    *,
    bare: bool = False,
) -> dict[str, Any]:
    """Components by name and what else the pipeline is made of; `options` may hold some of them."""
    classes = loading.component_classes(folder, index, stock)
    wanted = {name: cls for name, cls in classes.items() if name not in options}
    loading.refuse_code_and_pickles(folder, wanted)
    given = {key: value for key, value in options.items() if key not in _FETCHING}
    subfolders = {name: folder / name for name in wanted}
    if bare:
        return {name: loading.empty_component(cls, subfolders[name], dtype) for name, cls in wanted.items()} | given
    variants = {
        n: loading.weights_variant(subfolders[n], variant) for n, cls in wanted.items() if issubclass(cls, nn.Module)
    }
    if variant is not None and variants and variant not in variants.values():
        raise ModelNotFound(f"cannot load {str(folder)!r}: expected weights of the variant {variant!r}, got none")
    loaded = {
        name: loading.load_component(cls, subfolders[name], dtype, variants.get(name)) for name, cls in wanted.items()
    }
    return {**loading.absent_components(index, stock), **loaded, **given}


def _assemble(loader: Any, folder: Path, parts: Mapping[str, Any]) -> DiffusionPipeline:
    pipe: DiffusionPipeline = loader.from_pretrained(str(folder), local_files_only=True, **parts)
    return pipe


def _locate(model: str | Path) -> str:
    """The folder or Hub id to load.

    Raises:
        ModelNotFound: A path without a model.
    """
    text = str(model)
    if text in worlds.list():
        folder = worlds.get(text).folder
        if not (folder / "model_index.json").is_file():
            raise ModelNotFound("the embedded model is not in this installation; reinstall erasers")
        return str(folder)
    path = at_home(text)
    if text.strip() and path.is_dir():
        if not (path / "model_index.json").is_file():
            way = (
                "; load one of transformers there, for erasers.ModelPipeline"
                if (path / "config.json").is_file()
                else ""
            )
            raise ModelNotFound(f"{text} is not a diffusers model: it has no model_index.json{way}")
        return str(path)
    if path.is_file():
        return str(single_file.check_file(path))
    if isinstance(model, Path) or not text.strip() or text[0] in "./~\\" or text.count("/") > 1:
        known = " or ".join(map(repr, worlds.list()))
        raise ModelNotFound(f"no model folder {text!r}; expected a diffusers folder, a Hub id or {known}")
    return text


def _explain(model: str | Path, error: BaseException) -> str:
    why = reason(
        error,
        unknown="no such folder and no such public model on the Hub; check the spelling, or log in if it is private",
        offline="no such folder, and the Hub cannot be reached; connect, or use the embedded model: "
        f"--model {worlds.DEFAULT}",
    )
    if "custom code" in why or "trust_remote_code" in why:
        why = "it holds code of its own, which is not run; if erasers saved it, fetch it and load the folder"
    return f"cannot load {str(model)!r}: {why}"
