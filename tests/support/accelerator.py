"""An accelerator that is not there: tensors stay on the CPU, say that they are on `cuda:0`, and refuse what that would.

    with Accelerator():
        pipe.to("cuda")
        ...

What a tensor's place is hangs on its storage, so that views and what autograd keeps have it, too. Python's calls say
where a tensor goes (`_Places`); every operation below them, those of a backward pass included, is checked
(`_Operations`). It sees no kernels, no precision and no memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
_aten = torch.ops.aten
# Read or write across devices.
_ACROSS = {_aten.copy_.default, _aten._local_scalar_dense.default, _aten.set_.source_Tensor}
# Their indices may be on the CPU.
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
# A single number on the CPU is not taken by these.
_STRICT = {_aten.cat.default, _aten.stack.default, _aten.embedding.default, _aten.index_select.default}


class WrongDevice(RuntimeError):
    """What an accelerator would have refused."""


class Accelerator:
    """A context in which there is one, with 16 GB that are free."""

    def __enter__(self) -> Accelerator:
        places = Places()
        memory = patch.object(torch.cuda, "mem_get_info", lambda device: (2**34, 2**34))
        self._contexts: list[Any] = [memory, _Operations(places), _Python(places)]
        for context in self._contexts:
            context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for context in reversed(self._contexts):
            context.__exit__(*error)


class Places:
    """Which storages are on the accelerator."""

    def __init__(self) -> None:
        # The reference keeps an address from being used again.
        self._there: dict[int, StorageWeakRef] = {}

    def there(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._there

    def put(self, tensor: torch.Tensor, there: bool) -> None:
        storage = tensor.untyped_storage()
        if there:
            self._there[storage._cdata] = StorageWeakRef(storage)
        else:
            self._there.pop(storage._cdata, None)


class _Placed:
    """A mode that knows which storages are on the accelerator."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places


class _Operations(_Placed, TorchDispatchMode):
    """Checks every operation, and puts its results where its tensors are."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        more = dict(kwargs or {})
        tensors = [value for value in tree_leaves([args, more]) if isinstance(value, torch.Tensor)]
        if more.get("device") == torch.device("meta") or any(tensor.is_meta for tensor in tensors):
            # Only shapes, which are nowhere.
            return function(*args, **more)
        there = self._place(function, args, tensors)
        for value in tree_leaves([args, more]):
            if isinstance(value, torch.Generator) and there:
                raise WrongDevice(f"{function}: expected a generator of cuda, got one of the CPU")
        known = {tensor.untyped_storage()._cdata for tensor in tensors}
        output = function(*args, **more)
        for value in tree_leaves(output):
            if isinstance(value, torch.Tensor) and value.untyped_storage()._cdata not in known:
                self.places.put(value, there)
        return output

    def _place(self, function: Any, args: Any, tensors: list[torch.Tensor]) -> bool:
        """Where the result is."""
        if not tensors:
            return False
        first = self.places.there(tensors[0])
        if function in _ACROSS:
            return first
        if function in _INDEXED:
            indices = [value for value in tree_leaves(args[1]) if isinstance(value, torch.Tensor)]
            if not first and any(map(self.places.there, indices)):
                raise WrongDevice(f"{function}: indices should be on the CPU, as the indexed tensor is")
            tensors = [tensor for tensor in tensors if all(tensor is not index for index in indices)]
        scalars = [] if function in _STRICT else [one for one in tensors if not one.dim()]
        arrays = {self.places.there(one) for one in tensors if function in _STRICT or one.dim()}
        if len(arrays) > 1 or (arrays == {False} and any(map(self.places.there, scalars))):
            shapes = [(tuple(one.shape), "cuda" if self.places.there(one) else "cpu") for one in tensors]
            raise WrongDevice(f"{function}: expected all tensors to be on the same device, got {shapes}")
        return True in arrays or any(map(self.places.there, scalars))


class _Python(_Placed, TorchFunctionMode):
    """Says where tensors are, and moves them."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        more = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name == "__get__":
            asked = getattr(function.__self__, "__name__", "")
            there = {"device": CUDA, "is_cuda": True, "is_cpu": False}
            return there[asked] if asked in there and self.places.there(args[0]) else function(*args, **more)
        if name in ("numpy", "__array__") and self.places.there(args[0]):
            raise WrongDevice("a tensor on cuda:0 has no numpy array; copy it to the CPU first")
        if name in ("to", "cpu", "cuda") and isinstance(args[0], torch.Tensor):
            return self._moved(name, args, more)
        device = more.get("device")
        # That of modules says where they go, and moves nothing.
        if device is None or name == "_parse_to" or torch.device(device).type not in (CPU.type, CUDA.type):
            return function(*args, **more)
        there = torch.device(device).type == CUDA.type
        if there and more.get("generator") is not None:
            raise WrongDevice(f"{name}: expected a generator of cuda, got one of the CPU")
        more["device"] = CPU
        output = function(*args, **more)
        # `as_tensor` may give back what it got.
        output = output.clone() if any(output is one for one in args) and there != self.places.there(output) else output
        self.places.put(output, there)
        return output

    def _moved(self, name: str, args: Any, more: dict[str, Any]) -> torch.Tensor:
        tensor, *rest = args
        before = there = self.places.there(tensor)
        if name in ("cpu", "cuda"):
            there, rest = name == "cuda", []
        if "device" in more and (device := more.pop("device")) is not None:
            there = torch.device(device).type == CUDA.type
        for value in rest:
            if isinstance(value, (str, torch.device)):
                there = torch.device(value).type == CUDA.type
            elif isinstance(value, torch.Tensor):
                there = self.places.there(value)
        kinds = [value.dtype if isinstance(value, torch.Tensor) else value for value in rest]
        kind = next((value for value in [*kinds, more.get("dtype")] if isinstance(value, torch.dtype)), tensor.dtype)
        moved = _Move.apply(tensor, self.places, there) if there != before else tensor
        return moved.to(dtype=kind) if kind != tensor.dtype else moved


class _Move(torch.autograd.Function):
    """A copy on the other device; gradients go back the same way."""

    @staticmethod
    def forward(context: Any, tensor: torch.Tensor, places: Places, there: bool) -> torch.Tensor:
        context.places, context.there = places, there
        moved = tensor.clone()
        places.put(moved, there)
        return moved

    @staticmethod
    def backward(context: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        back = slope.clone()
        context.places.put(back, not context.there)
        return back, None, None
