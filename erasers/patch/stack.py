"""The patches that a live pipeline carries: how they are applied on top of each other, and undone in any order.

The state of a component (its patches, the tensors they replaced, its hooks) lives on the module itself, so that
pipelines that share a module agree on it and a deep copy has its own.

A later patch acts on the input first: patches 1 and 2 make W T1 T2 of a weight W. A hook in front of a weight edited
before it does the same. In front of one that is edited later, it would act too early: there it is folded into the
weights, for as long as the later edit stays.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from erasers.files.hashing import tensor_hashes
from erasers.files.tensors import PatchError
from erasers.models.components import component, find_parameter, refuse_streaming
from erasers.models.ports import warn_of_other_readers
from erasers.patch.edits import Edit
from erasers.patch.hooks import Hook
from erasers.patch.targets import Target, find_target, weights_behind

_STATE = "_erasers_state"

# (fingerprints of each parameter by kind, its tensors by kind) -> None, raising when they do not fit.
Check: TypeAlias = Callable[[Mapping[str, Mapping[str, str]], Mapping[str, Mapping[str, torch.Tensor]]], None]
# The edits of one weight with their strengths, in order.
_Fold: TypeAlias = list[tuple[Edit, float]]


@dataclass(frozen=True, eq=False)
class Entry:
    """One patch as it is applied.

    Args:
        digest: Names the patch.
        strength: Scale of its edits.
        edits: By parameter name.
        hooks: Sorted by target.
        patch: The patch itself.
        base: Parameters whose fingerprints are checked beside those of the edited ones.
        order: Counts up.
    """

    digest: str
    strength: float
    edits: Mapping[str, Edit]
    hooks: list[Hook]
    patch: Any
    base: tuple[str, ...] = ()
    order: int = field(default_factory=itertools.count().__next__)

    def components(self) -> list[str]:
        """Names of the components that the patch changes."""
        return sorted({*map(_component, self.edits), *(hook.component for hook in self.hooks)})


@dataclass
class _State:
    """Patches on one component in order, and what they replaced and installed."""

    stack: list[Entry] = field(default_factory=list)
    originals: dict[str, torch.Tensor] = field(default_factory=dict)
    folds: dict[str, _Fold] = field(default_factory=dict)
    running: list[tuple[Entry, Hook]] = field(default_factory=list)
    handles: list[RemovableHandle] = field(default_factory=list)


def apply(pipe: Any, entry: Entry, check: Check) -> None:
    """Apply a patch; see `Patch.apply`."""
    live = _find(pipe, entry.edits.items())
    for hook in entry.hooks:
        hook.check(find_target(pipe, hook))
    states = _settle(pipe, entry.components(), live)
    for name, state in states.items():
        if any(other.digest == entry.digest for other in state.stack):
            raise PatchError(f"expected a patch that is not applied yet, got one that {name} already carries")
    check(*_fingerprints(pipe, entry))
    _restack(pipe, states, {name: [*state.stack, entry] for name, state in states.items()}, live)
    warn_of_other_readers(pipe)


def remove(pipe: Any, entry: Entry) -> None:
    """Remove a patch; see `Patch.remove`."""
    for name in entry.components():
        if not any(other.digest == entry.digest for other in _state(pipe, name).stack):
            raise PatchError(f"expected a patch that is applied to this pipeline, got one that {name} does not carry")
    live = _find(pipe, entry.edits.items())
    states = _settle(pipe, entry.components(), live)
    stacks = {name: [other for other in state.stack if other.digest != entry.digest] for name, state in states.items()}
    _restack(pipe, states, stacks, live)


def applied(pipe: Any) -> list[Entry]:
    """The patches that the components of a pipeline carry, in the order in which they were applied."""
    entries: dict[str, Entry] = {}
    for state in _states(pipe):
        entries |= {entry.digest: entry for entry in state.stack}
    return sorted(entries.values(), key=lambda entry: entry.order)


def is_applied(pipe: Any, entry: Entry) -> bool:
    """Whether every component of the patch carries it, with the weights that were written and the hooks installed."""
    try:
        _settle(pipe, entry.components(), _find(pipe, entry.edits.items()))
        return not is_lost(pipe, entry)
    except PatchError:
        return False


def base_weights(pipe: Any, entry: Entry, check: Check) -> dict[str, torch.Tensor]:
    """The weights that `entry` was fitted on, whether or not the pipeline carries patches now.

    Raises:
        PatchError: From `check`, when they are neither the live weights nor the original ones.
    """
    live = _find(pipe, entry.edits.items())
    check(*_fingerprints(pipe, entry))
    return {name: _state(pipe, _component(name)).originals.get(name, live[name].data) for name in live}


def is_lost(pipe: Any, entry: Entry) -> bool:
    """Whether a part of an applied patch is gone: a component does not carry it, or has the original weights again.

    Unlike `is_applied` this lets weights pass that were changed on top, as by a fused LoRA.
    """
    for name in entry.components():
        state = _state(pipe, name)
        hooked = all(handle.id in (handle.hooks_dict_ref() or ()) for handle in state.handles)
        if not hooked or not any(other.digest == entry.digest for other in state.stack):
            return True
        for key, original in state.originals.items():
            live = find_parameter(pipe, key, linear=False, edit=False).data
            original = original.to(live.device, live.dtype)
            if torch.equal(live, original) and not torch.equal(_folded(key, original, state.folds[key]), original):
                return True
    return False


def running(pipe: Any) -> list[tuple[Entry, Hook]]:
    """The hooks that run in a pipeline, with their patches, in the order in which these were applied.

    What other hooks of these patches do, the weights hold at present.
    """
    pairs = [pair for state in _states(pipe) for pair in state.running]
    return sorted(pairs, key=lambda pair: pair[0].order)


def _restack(
    pipe: Any, states: Mapping[str, _State], stacks: Mapping[str, list[Entry]], live: Mapping[str, nn.Parameter]
) -> None:
    """Make each component what its new stack says; all that can fail comes before the first change."""
    values: list[tuple[nn.Parameter, torch.Tensor]] = []
    targets: dict[str, list[Target]] = {}
    for name, state in states.items():
        folds, running = _plan(pipe, name, stacks[name])
        changed = {key for key in {*folds, *state.folds} if folds.get(key) != state.folds.get(key)}
        pairs = [(key, edit) for key in changed - live.keys() for edit, _ in folds.get(key) or state.folds[key]]
        parameters = {**live, **_find(pipe, pairs)}
        originals = {key: parameters[key].data for key in changed} | state.originals
        values += [(parameters[key], _folded(key, originals[key], folds.get(key, []))) for key in sorted(changed)]
        if running != state.running:
            targets[name] = [Target(pipe, hook, entry.strength) for entry, hook in running]
        state.stack, state.folds, state.running = stacks[name], folds, running
        state.originals = {key: originals[key] for key in folds}
    for parameter, value in values:
        parameter.data = value
    for name, state in states.items():
        if name in targets:
            for handle in state.handles:
                handle.remove()
            state.handles = [handle for target in targets[name] for handle in target.install()]
        _store(component(pipe, name), state)
    # Inductor can make constants of weights.
    if values and getattr(sys.modules.get("torch._inductor.config"), "freezing", False):
        torch.compiler.reset()
    if targets:
        from torch._dynamo import config as compiler

        # Compiled code looks neither for hooks that came later nor for those that only another model of its kind has.
        compiler.skip_nnmodule_hook_guards = False
        torch.compiler.reset()


def _plan(pipe: Any, name: str, stack: list[Entry]) -> tuple[dict[str, _Fold], list[tuple[Entry, Hook]]]:
    """How the weights of a component are folded, and which hooks run, the latest first.

    From the last patch back: a hook runs unless a later edit sits between it and a weight that it feeds. Within one
    patch, weights are edited first, then layers get their hooks, then the component.
    """
    folds: dict[str, _Fold] = {}
    running: list[tuple[Entry, Hook]] = []
    hooked: set[str] = set()
    for entry in reversed(stack):
        for hook in entry.hooks:
            if hook.component != name:
                continue
            reads = weights_behind(pipe, hook) if hook.path or folds or hooked else set()
            if reads & folds.keys() or not hook.path and reads & hooked:
                for parameter in reads:
                    folds.setdefault(parameter, []).insert(
                        0, (Edit("transform", dict(hook.parts.items())), entry.strength)
                    )
                continue
            running.append((entry, hook))
            hooked |= reads if hook.path else set()
        for parameter, edit in entry.edits.items():
            if _component(parameter) == name:
                folds.setdefault(parameter, []).insert(0, (edit, entry.strength))
    return folds, running


def _store(root: nn.Module, state: _State) -> None:
    if state.stack:
        setattr(root, _STATE, state)
    elif hasattr(root, _STATE):
        delattr(root, _STATE)
    # What diffusers' caches keep of an interrupted run would go into the next picture.
    for module in root.modules():
        registry = module.__dict__.get("_diffusers_hook")
        if registry is not None:
            registry.reset_stateful_hooks(recurse=False)


def _find(pipe: Any, edits: Iterable[tuple[str, Edit]]) -> dict[str, nn.Parameter]:
    """The parameters that are edited, when they can be."""
    live: dict[str, nn.Parameter] = {}
    edits = list(edits)
    try:
        for name in sorted({_component(name) for name, _ in edits}):
            refuse_streaming(name, component(pipe, name))
        for name, edit in edits:
            live[name] = find_parameter(pipe, name, linear=edit.form != "dense")
    except ValueError as error:
        raise PatchError(str(error)) from None
    names: dict[int, str] = {}
    for name, parameter in live.items():
        if names.setdefault(id(parameter), name) != name:
            raise PatchError(f"expected one edit for each parameter, got two for {name}: it is {names[id(parameter)]}")
    for name, edit in edits:
        shape, wanted = tuple(live[name].shape), edit.shape()
        if len(shape) != len(wanted) or any(w not in (None, s) for s, w in zip(shape, wanted, strict=True)):
            raise PatchError(f"the patch is for another model: {name} has shape {shape}, the edit needs {wanted}")
    return live


def _settle(pipe: Any, components: Iterable[str], live: Mapping[str, nn.Parameter]) -> dict[str, _State]:
    """The states of components, after checking that the live weights are what was written last.

    The kept originals follow the dtype and device of the live weights. Nothing is changed before `_store`.
    """
    states, names = {}, {id(parameter): name for name, parameter in live.items()}
    for name in components:
        old = _state(pipe, name)
        originals = {}
        for key, original in old.originals.items():
            try:
                parameter = find_parameter(pipe, key, linear=False, edit=False)
            except ValueError as error:
                raise PatchError(str(error)) from None
            if names.get(id(parameter), key) != key:
                raise PatchError(f"expected one name for {key}, which a patch edits, got {names[id(parameter)]}, too")
            if not _close(_folded(key, original, old.folds[key]), parameter.data):
                raise PatchError(
                    f"{key} was changed after a patch was applied (was a LoRA fused, or were weights loaded?); undo "
                    "that first, or load the pipeline anew"
                )
            originals[key] = original.to(parameter.device, parameter.dtype)
        states[name] = _State(old.stack, originals, old.folds, old.running, old.handles)
    return states


def _fingerprints(pipe: Any, entry: Entry) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, torch.Tensor]]]:
    """Fingerprints of the live weights and, where a patch replaced them, of the original ones; and these weights."""
    names = {**dict.fromkeys(entry.edits), **dict.fromkeys(entry.base)}
    try:
        live = {name: find_parameter(pipe, name, linear=False, edit=False) for name in names}
    except ValueError as error:
        raise PatchError(f"cannot check whether the patch is for this model: {error}; or pass force=True") from None
    candidates: dict[str, dict[str, str]] = {name: {} for name in live}
    tensors = {name: {"live": parameter.data} for name, parameter in live.items()}
    for name in {_component(name) for name in live}:
        mine = {key: parameter.data for key, parameter in live.items() if _component(key) == name}
        kept = {key: original for key, original in _state(pipe, name).originals.items() if key in mine}
        for key, value in tensor_hashes(mine, owner=component(pipe, name)).items():
            candidates[key]["live"] = value
        for key, value in tensor_hashes(kept).items():
            candidates[key]["original"] = value
            tensors[key]["original"] = kept[key]
    return candidates, tensors


def _folded(name: str, weight: torch.Tensor, fold: _Fold) -> torch.Tensor:
    new = weight
    for edit, strength in fold:
        new = edit.apply(new, strength)
    if new is not weight and not torch.isfinite(new).all():
        advice = "load the pipeline in float32" if weight.dtype.itemsize == 2 else "its values are too large"
        raise PatchError(f"the edited {name} does not fit {weight.dtype}; {advice}")
    return new


def _close(expected: torch.Tensor, live: torch.Tensor) -> bool:
    expected = expected.to(live.device, live.dtype)
    if torch.equal(expected, live):
        return True
    if expected.shape != live.shape:
        return False
    # Another device or thread count may round a product differently, by a few units in the last place.
    tolerance = 4 * torch.finfo(live.dtype).eps * expected.abs().max().item()
    return bool((expected.double() - live.double()).abs().max() <= tolerance)


def _state(pipe: Any, name: str) -> _State:
    try:
        return getattr(component(pipe, name), _STATE, None) or _State()
    except ValueError as error:
        raise PatchError(str(error)) from None


def _states(pipe: Any) -> list[_State]:
    modules = [module for module in getattr(pipe, "__dict__", {}).values() if isinstance(module, nn.Module)]
    return [getattr(getattr(module, "_orig_mod", module), _STATE, _State()) for module in modules]


def _component(name: str) -> str:
    return name.partition(".")[0]
