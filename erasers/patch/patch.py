"""The artefact of an erasure: a `Patch` is small, frozen and one safetensors file.

Tensors of a patch, by name (`W` is a weight `[out, d]`, edits act from the right):

    transform/<group>/A [r, d], /B [d, r]     W_new = W (I + B A) for every port of the group
    transform/<group>/T [d, d]                W_new = W T, where A and B would not be smaller
    lowrank/<component>.<module>/A [r, d], /B [out, r]      W_new = W + B A, after a transform of the same weight
    dense/<component>.<parameter>             the new value itself
    hook/<component>[.<module>]/<kind>/<part> what runs during generation; the kinds are those of `hooks.py`

Metadata: format version, method, config, concepts, library version, the ports of each group, the fingerprint of every
base tensor (`hashing.py`) and its sketch (`sketch.py`), by which it is known when it was rounded to bfloat16.
`stack.py` has the order in which several patches act.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from erasers.files import tensors as patch_file
from erasers.files.hashing import raw_bytes
from erasers.files.tensors import FORMAT, PatchError
from erasers.models.components import FLOATS
from erasers.models.readers import warn_of_other_text
from erasers.patch import edits, stack
from erasers.patch.hooks import Hook, PromptTransform
from erasers.patch.sketch import fits, is_sketch
from erasers.patch.targets import text_weights

__all__ = ["Patch", "PatchError", "applied_patches"]

_DTYPES = tuple(str(dtype).removeprefix("torch.") for dtype in FLOATS)
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, eq=False, repr=False)
class Patch:
    """Edits of a pipeline's weights, hooks that run in it, and where they belong.

    Args:
        tensors: Tensors by name, as listed at the top of this module.
        meta: JSON-able metadata.

    Raises:
        PatchError: Unknown names, shapes or dtypes, values that are not finite, metadata that does not fit.
    """

    tensors: Mapping[str, torch.Tensor]
    meta: Mapping[str, Any]

    def __post_init__(self) -> None:
        try:
            meta = json.loads(json.dumps(dict(self.meta), allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise PatchError(f"expected JSON-able metadata, got {error}") from None
        tensors = {name: self.tensors[name].detach() for name in sorted(self.tensors)}
        object.__setattr__(self, "tensors", MappingProxyType(tensors))
        object.__setattr__(self, "meta", MappingProxyType(meta))
        _check_meta(meta)
        # Parsing is a check, too.
        missing = [name for name in self.changes if name not in meta["base"]]
        if missing:
            raise PatchError(f"expected the fingerprint of {missing[0]} among the metadata, got none; it is damaged")

    def __deepcopy__(self, memo: object) -> Patch:
        return self

    def __reduce__(self) -> tuple[type[Patch], tuple[dict[str, torch.Tensor], dict[str, Any]]]:
        return Patch, (dict(self.tensors), dict(self.meta))

    def __repr__(self) -> str:
        names = ", ".join(repr(concept.get("name")) for concept in self.meta["concepts"])
        weights, hooks = self._parsed
        parts = [f"{len(weights)} weights"] * bool(weights) + [f"{len(hooks)} hooks"] * bool(hooks)
        return f"Patch({self.meta['method']}: {names}; {', '.join(parts)}, {self.nbytes} bytes)"

    @cached_property
    def _parsed(self) -> tuple[dict[str, edits.Edit], list[Hook]]:
        return edits.parse(self.tensors, self.meta["groups"])

    @cached_property
    def digest(self) -> str:
        """sha256 of tensors and metadata: two patches of one digest are the same patch."""
        digest = hashlib.sha256(json.dumps(dict(self.meta), sort_keys=True).encode())
        for name, tensor in self.tensors.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(raw_bytes(tensor))
        return digest.hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, without the header of the file."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters that the patch edits, sorted."""
        return sorted(self.changes)

    @property
    def hooks(self) -> tuple[Hook, ...]:
        """What runs during generation, sorted by target."""
        return tuple(self._parsed[1])

    @property
    def has_hooks(self) -> bool:
        """Whether any of the patch runs during generation, so that saved weights do not hold all of it."""
        return bool(self._parsed[1])

    def apply(self, pipe: Any, *, strength: float = 1.0, force: bool = False) -> Any:
        """Edit `pipe` in place. **Pipelines that share its modules (`from_pipe`) are edited too.**

        The replaced tensors are kept, so that `remove` restores them bit for bit. After an error nothing is edited.
        Hooks start to run; compiled models are then compiled anew, and `save_pretrained` of stock diffusers does not
        save what hooks do.

        Args:
            pipe: A diffusers pipeline.
            strength: Scale of the edit; 0 changes nothing, 1 is the patch as fitted.
            force: Apply even when the pipeline's weights are not those the patch was fitted on.

        Returns:
            The same pipe.

        Raises:
            PatchError: The patch does not fit this pipeline, or the pipeline cannot be edited in its present state.
        """
        if not isinstance(strength, (int, float)) or isinstance(strength, bool) or not abs(strength) < float("inf"):
            raise PatchError(f"expected a finite number as strength, got {strength!r}")
        base = () if force else tuple(self.meta["base"])
        stack.apply(pipe, self._entry(float(strength), base), _fit_check(self, force))
        warn_of_other_text(self.meta.get("readers"), pipe)
        return pipe

    def remove(self, pipe: Any) -> Any:
        """Undo `apply`, whatever was applied before or after; the result is as if this patch had never been applied.

        Returns:
            The same pipe.

        Raises:
            PatchError: The patch is not applied, or the weights have been changed by something else since.
        """
        stack.remove(pipe, self._entry(1.0))
        return pipe

    def is_applied(self, pipe: Any) -> bool:
        """Whether the pipeline carries this patch in all its parts, and its weights were not loaded anew since."""
        return stack.is_applied(pipe, self._entry(1.0))

    @contextmanager
    def applied(self, pipe: Any, *, strength: float = 1.0, force: bool = False) -> Iterator[Any]:
        """Apply on entry, remove on exit, also after an exception."""
        self.apply(pipe, strength=strength, force=force)
        try:
            yield pipe
        finally:
            self.remove(pipe)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; it appears whole or not at all.

        Raises:
            FileNotFoundError: The folder does not exist.
            PatchError: `path` is a folder.
        """
        patch_file.write(Path(path), self.tensors, self.meta)

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read a patch.

        Raises:
            FileNotFoundError: No such file.
            PatchError: Truncated, foreign, damaged, or written by a newer version of the library.
        """
        return cls(*patch_file.read(Path(path)))

    def to_lora(self, pipe: Any, folder: str | Path, *, form: str = "peft", force: bool = False) -> Path:
        """Write the patch as a LoRA that diffusers loads without this library: `pipe.load_lora_weights(folder)`.

        The LoRA is exact, but whoever loads it can switch it off (`disable_lora`, `set_adapters`), and so does loading
        another LoRA after it. `erasers.load_lora` loads it and makes sure that all of it was loaded.

        Args:
            pipe: The pipeline the patch was fitted on; it is not changed.
            folder: Where `pytorch_lora_weights.safetensors` goes; created when only its last part is missing.
            form: `peft` has the names of diffusers; `kohya` those of web UIs, for the denoisers and CLIP encoders of
                Stable Diffusion 1, 2, XL, 3 and FLUX.1, with alpha. Stock diffusers reads these, too, but for Stable
                Diffusion 3, of which it loads nothing, without an error: there `erasers.load_lora` does. Rename the
                file for a web UI, which shows its name.
            force: Write even when the pipeline's weights are not those the patch was fitted on.

        Returns:
            Path of the file.

        Raises:
            PatchError: Edits that are not low-rank edits of linear layers or that stock diffusers would not load in
                this form (`to_delta` writes those), hooks, or a patch for other weights.
            FileNotFoundError: The folder above `folder` does not exist.
        """
        from erasers.patch import forms

        forms.check_form(form)
        self._refuse_hooks()
        forms.check_folder(Path(folder))
        names = forms.layer_names(self.changes, pipe, form)
        base = self.base_weights(pipe, force=force)
        return forms.write_lora(self.changes, base, names, Path(folder), form)

    def to_delta(self, pipe: Any, folder: str | Path, *, force: bool = False) -> Path:
        """Write the edited weights themselves, for families without a LoRA loader and for dense edits.

        They load without this library, and are bit for bit those of `apply`. For a patch of the transformer:

            weights = safetensors.torch.load_file("folder/delta_weights.safetensors")
            weights = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
            pipe.transformer.load_state_dict(weights, strict=False)

        Args:
            pipe: The pipeline the patch was fitted on, whose dtype the weights get; it is not changed.
            folder: Where `delta_weights.safetensors` goes; created when only its last part is missing.
            force: Write even when the pipeline's weights are not those the patch was fitted on.

        Returns:
            Path of the file; its tensors are named `<component>.<parameter>`.

        Raises:
            PatchError: A patch with hooks, or one for other weights.
            FileNotFoundError: The folder above `folder` does not exist.
        """
        from erasers.patch import forms

        self._refuse_hooks()
        forms.check_folder(Path(folder))
        return forms.write_delta(self.changes, self.base_weights(pipe, force=force), self.meta, Path(folder))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        report: str | Path | None = None,
        base_model: str | None = None,
        license: str | None = None,
    ) -> str:
        """Publish the patch with a generated model card; both replace what the repository has under these names.

        Args:
            repo_id: `user/name`; created when missing.
            private: Whether a new repository is private; as the account has it when None.
            token: Of the account; that of the login when None.
            report: Folder written by `erase --report`: its scores go into the card, its picture beside it.
            base_model: Hub id of the model the patch was fitted on; taken from the report when None.
            license: Identifier of a licence, e.g. `apache-2.0`.

        Returns:
            The address of the repository.

        Raises:
            ValueError: A name that is no Hub id, or the report of another erasure.
            FileNotFoundError: No report in that folder.
            OSError: No connection, or no right to write there.
        """
        from erasers.files.report_folder import PICTURE, read_picture
        from erasers.patch import publish
        from erasers.patch.card import Facts, model_card

        publish.check_repository(repo_id)
        summary = None if report is None else publish.read_report(self.meta, self.digest, Path(report))
        picture = None if report is None else read_picture(Path(report))
        card = model_card(
            Facts(self.meta, len(self.changes), len(self.hooks), self.nbytes),
            repo_id=repo_id,
            base_model=base_model,
            license=license,
            summary=summary,
            picture=PICTURE if picture else None,
        )
        return publish.push(repo_id, self.save, card, picture, private=private, token=token)

    def to_hooks(self, pipe: Any) -> Patch:
        """The same edit as a patch that changes no weights: it transforms the text on its way to them.

        For weights that cannot be edited (quantised, streamed). One hook on the denoiser where all that reads its text
        is edited alike, else one for each layer. Stacked with others it does what this patch would.

        Args:
            pipe: The pipeline the patch was fitted on; it is not changed.

        Raises:
            PatchError: Edits other than transforms, or text that an adapter changes on its way.
        """
        if self.has_hooks or any(edit.form != "transform" for edit in self.changes.values()):
            raise PatchError("expected a patch of transforms alone to turn into hooks, got one with other edits")
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in self.tensors.items():
            _, group, part = name.split("/")
            for target in _hook_targets(pipe, self.meta["groups"][group]):
                # Of its own for each layer: a file holds no tensor twice.
                tensors[f"hook/{target}/{PromptTransform.kind}/{part}"] = tensor.clone()
        return Patch(tensors, dict(self.meta))

    def base_weights(self, pipe: Any, *, force: bool = False) -> dict[str, torch.Tensor]:
        """The weights that the patch was fitted on, by parameter name, whether or not the pipeline is patched now.

        Raises:
            PatchError: The pipeline has other weights; `force` lets them pass.
        """
        return stack.base_weights(pipe, self._entry(1.0), _fit_check(self, force))

    @property
    def changes(self) -> Mapping[str, edits.Edit]:
        """What happens to each parameter, by name."""
        return MappingProxyType(self._parsed[0])

    def _refuse_hooks(self) -> None:
        if self.has_hooks:
            raise PatchError("expected a patch of weights, got one with hooks, which no file of weights holds; save it")

    def _entry(self, strength: float, base: tuple[str, ...] = ()) -> stack.Entry:
        return stack.Entry(self.digest, strength, *self._parsed, self, base)


def applied_patches(pipe: Any) -> list[tuple[Patch, float]]:
    """The patches that a pipeline carries, with their strengths, in the order in which they were applied."""
    return [(entry.patch, entry.strength) for entry in stack.applied(pipe)]


def _hook_targets(pipe: Any, ports: list[str]) -> list[str]:
    """Where hooks do what an edit of these ports does: the denoiser if they are all that reads its text, or each."""
    name = ports[0].partition(".")[0]
    return [name] if {f"{port}.weight" for port in ports} == text_weights(pipe, name) else ports


def _fit_check(patch: Patch, force: bool) -> stack.Check:
    """A check that refuses weights other than those `patch` was fitted on; `force` lets everything pass."""

    def check(candidates: Mapping[str, Mapping[str, str]], tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        if force:
            return
        for hook in patch.hooks:
            if not any(name.partition(".")[0] == hook.component for name in candidates):
                raise PatchError(
                    f"expected fingerprints of the {hook.component} that the patch was fitted on, got none, so it may "
                    "be for another model; if it is for this one, pass force=True"
                )
        wrong = [name for name, hashes in candidates.items() if patch.meta["base"].get(name) not in hashes.values()]
        wrong = [name for name in wrong if not _is_rounded(patch.meta, name, tensors[name].values())]
        if not wrong:
            return
        live = str(tensors[wrong[0]]["live"].dtype).removeprefix("torch.")
        fitted = patch.meta.get("base_dtype", live)
        advice = "use the model the patch was fitted on"
        if live != fitted and wrong[0] not in patch.meta.get("sketches", {}):
            advice += f", in {fitted} (this one is in {live})"
        raise PatchError(
            f"the patch was fitted on other weights: {wrong[0]} differs ({len(wrong)} of {len(candidates)} do); "
            f"{advice}, or pass force=True"
        )

    return check


def _is_rounded(meta: Mapping[str, Any], name: str, tensors: Iterable[torch.Tensor]) -> bool:
    """Whether one of the tensors is that of the fit but for the rounding to or from bfloat16."""
    sketch = meta.get("sketches", {}).get(name)
    return sketch is not None and any(fits(sketch, tensor) for tensor in tensors)


def _check_meta(meta: Mapping[str, Any]) -> None:
    version = meta.get("format")
    if type(version) is not int or version < 1:
        raise PatchError(f"expected a patch of format 1 to {FORMAT}, got {version!r:.60}")
    if version > FORMAT:
        raise PatchError(f"expected a patch of format 1 to {FORMAT}, got {version!r:.60}; upgrade erasers")
    wanted = {"method": str, "config": dict, "concepts": list, "groups": dict, "base": dict}
    for key, kind in wanted.items():
        if not isinstance(meta.get(key), kind):
            raise PatchError(f"expected {key!r} in the metadata as {kind.__name__}, got {meta.get(key)!r:.60}")
    if not all(isinstance(concept, dict) for concept in meta["concepts"]):
        raise PatchError("expected each concept in the metadata as an object")
    for name, ports in meta["groups"].items():
        names = isinstance(ports, list) and all(isinstance(port, str) and edits.NAME.fullmatch(port) for port in ports)
        if not names or not ports:
            raise PatchError(f"expected the ports of group {name!r:.80} as names of layers, got {ports!r:.60}")
    for name, value in meta["base"].items():
        if not isinstance(value, str) or not _SHA256.fullmatch(value):
            raise PatchError(f"expected the fingerprint of {name!r:.80} as 64 hexadecimal digits, got {value!r:.80}")
        if not edits.NAME.fullmatch(name):
            raise PatchError(f"expected the fingerprints of parameters, got one of {name!r:.80}; the patch is damaged")
    sketches = meta.get("sketches", {})
    readers = meta.get("readers", {})
    if not isinstance(readers, dict) or not all(isinstance(state, str) for state in readers.values()):
        raise PatchError(f"expected 'readers' in the metadata as text encoders with their states, got {readers!r:.80}")
    if not isinstance(sketches, dict) or not all(map(is_sketch, sketches.values())):
        raise PatchError("expected 'sketches' in the metadata as those of weights, got others; the patch is damaged")
    if meta.get("base_dtype", _DTYPES[0]) not in _DTYPES:
        raise PatchError(f"expected 'base_dtype' among {', '.join(_DTYPES)}, got {meta['base_dtype']!r:.60}")
