"""What a single-file pipeline is made of: a base that erases, and the component in which it keeps its patches.

A folder of a pipeline with hooks, which this library saved, has such a file in it:

    DiffusionPipeline.from_pretrained(FOLDER, variant="unerased", trust_remote_code=True)

Any other model, with a patch (a file, a folder with one, a Hub id, or several) and the file for its class, such as
those in the folder `pipelines` of the repository:

    custom = {"custom_pipeline": "erased_stable_diffusion.py", "trust_remote_code": True}
    DiffusionPipeline.from_pretrained(BASE, **custom, erasure=PATCH)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, get_type_hints

from erasers.folders import write as folders
from erasers.folders.record import COMPONENT, check_folder, read_hooks
from erasers.models.loading import component_classes
from erasers.patch import Patch, PatchError, applied_patches
from erasers.pipeline import as_patches


class Erasure:
    """Patches with their strengths, in order: a component of a pipeline.

    Args:
        patches: Patches with strengths.
    """

    def __init__(self, patches: Sequence[tuple[Patch, float]]) -> None:
        self.patches = tuple(patches)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **_: Any) -> Erasure:
        """Read the component of a saved pipeline; diffusers calls this.

        Raises:
            FileNotFoundError: A file of it is missing.
            PatchError: A file of it is not the one that was saved.
        """
        check_folder(Path(folder).parent, whole=False)
        return cls(read_hooks(Path(folder)))


class Erased:
    """Base of an erased pipeline class, before the stock class: `class Mine(Erased, StableDiffusionPipeline)`.

    It has the components of the stock class and `erasure`: an `Erasure`, or patches as for `ErasedPipeline`. They are
    applied before the pipeline can draw.

    Raises:
        PatchError: No patches, or patches that do not fit.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        stock: Any = folders.stock_class(cls)

        def __init__(self: Any, *args: Any, erasure: Any, **components: Any) -> None:
            stock.__init__(self, *args, **components)
            _erase(self, erasure)

        # diffusers learns from the signature which components there are.
        own = signature(stock.__init__)
        parameters = [*own.parameters.values(), Parameter("erasure", Parameter.KEYWORD_ONLY)]
        __init__.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        __init__.__annotations__ = get_type_hints(stock.__init__)
        cls.__init__ = __init__  # type: ignore[assignment]

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **options: Any) -> Any:
        """Read the index of a folder; diffusers calls this before it loads a component.

        Whoever loads this class trusts its file. That trust does not reach code that a model brings along.

        Raises:
            ModelNotFound: A component is no class of diffusers or transformers.
        """
        from transformers import dynamic_module_utils

        index = {name: value for name, value in config_dict.items() if name != COMPONENT}
        component_classes(Path(str(config_dict.get("_name_or_path", "the model"))), index, folders.stock_class(cls))
        # From here on transformers refuses code that it was not told to trust, where it would ask on the terminal.
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
        return super().extract_init_dict(config_dict, **options)  # type: ignore[misc]

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, variant: str | None = None
    ) -> Path:
        """Write the pipeline so that it loads erased; see `ErasedPipeline.save_pretrained`.

        Raises:
            PatchError: The pipeline carries no patch any more.
            ValueError: Pickles are asked for, or weights of another name.
        """
        if not safe_serialization or variant is not None:
            raise ValueError(
                f"expected safe_serialization=True and variant=None, got {safe_serialization} and {variant!r}; a "
                "pipeline is saved as safetensors alone, with hooks under a name that stock diffusers does not look for"
            )
        if not applied_patches(self):
            raise PatchError(f"expected {type(self).__name__} with a patch, got one whose patches were removed")
        return folders.save(self, save_directory)


def _erase(pipe: Any, erasure: Any) -> None:
    if not isinstance(erasure, Erasure):
        erasure = Erasure([(patch, 1.0) for patch in as_patches(() if erasure is None else erasure)])
    if not erasure.patches:
        raise PatchError(f"expected patches as erasure of {type(pipe).__name__}, got none")
    pipe.register_modules(erasure=erasure)
    carried = {patch.digest for patch, _ in applied_patches(pipe)}
    for patch, strength in erasure.patches:
        # Modules that come from another pipeline of this class bring the erasure with them.
        if patch.digest not in carried:
            patch.apply(pipe, strength=strength)
