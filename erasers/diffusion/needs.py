"""What a pass through a network with gradients needs, by counting.

A network is run once, for one sample, on the meta device, where tensors have shapes and no values: nothing is drawn,
trained or measured. What its backward pass needs is counted as it is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.table import adaptor_of, denoiser_of, denoisers_of
from erasers.diffusion.attacked import attacked_encoders
from erasers.diffusion.blanks import blank
from erasers.diffusion.latents import latent_shape
from erasers.diffusion.memory import free_memory, gigabytes
from erasers.models.components import component, parameters_of

_META = torch.device("meta")
_HALF = (torch.float16, torch.bfloat16)


def _width(given: Sequence[torch.Tensor]) -> int:
    return int(given[0].shape[-1])


def _window(given: Sequence[torch.Tensor]) -> int:
    return int(given[1][0].numel())


_PRODUCTS: dict[Any, Callable[[Sequence[torch.Tensor]], int]] = {
    **dict.fromkeys((functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm), _width),
    **dict.fromkeys((functional.conv1d, functional.conv2d, functional.conv3d), _window),
    torch.baddbmm: lambda given: _width(given[1:]),
}
"""Products -> how many numbers each number of the result is a sum of."""
_NORMS = (functional.group_norm, functional.layer_norm, functional.rms_norm)
_RUN = "_gradient_checkpointing_func"


@dataclass(frozen=True)
class Pass:
    """One backward pass of a method.

    Args:
        samples: Latents that go through the denoiser together.
        trained: Weights that get gradients.
        texts: Prompts that are encoded with gradients beside them: to what is trained of text encoders, or else to soft
            tokens.
        encoders: Those that soft tokens are in, as `attacked_encoders` takes them.
        size: Of their pictures in pixels; None: the model's own.
    """

    samples: int
    trained: Collection[str] = ()
    texts: int = 0
    size: int | None = None
    encoders: Sequence[str] = ()


@dataclass(frozen=True)
class Need:
    """What one backward pass needs.

    Args:
        samples: Latents that go through the denoiser together.
        sample: Bytes that each of them keeps for the backward pass.
        fixed: Bytes that are kept whatever their number.
        thrifty: Bytes that each of them keeps under gradient checkpointing.
        flops: Operations of the denoiser for each, forward.
    """

    samples: int
    sample: int
    fixed: int
    thrifty: int = 0
    flops: float = 0.0

    def nbytes(self, batch: int, checkpointing: bool = False) -> int:
        """Bytes with at most so many latents together."""
        return self.fixed + (self.thrifty if checkpointing else self.sample) * min(batch, self.samples)


def samples_together(pipe: Any, passes: Sequence[Pass], memory: int | None) -> int | None:
    """How many samples of these backward passes fit the memory there is; None: all of them.

    Args:
        pipe: A pipeline of a family in `erasers.diffusion.adaptors.table`.
        passes: Backward passes of which one is done at a time.
        memory: Bytes for all; None: what the device has, or a CPU without bounds.

    Raises:
        ValueError: Not one of them fits.
    """
    if not passes:
        return None
    budget = free_memory(pipe) if memory is None else memory
    if budget is None:
        return None
    model = sum(parameter.nbytes for _, parameter in parameters_of(pipe))
    needs = [need_of(pipe, backward) for backward in passes]
    largest = max(need.samples for need in needs)
    fits = [batch for batch in range(1, largest + 1) if _fits(needs, batch, budget - model)]
    if not fits and memory is not None:
        least = model + max(need.nbytes(1) for need in needs)
        raise ValueError(f"expected memory of at least {gigabytes(least)}, got {gigabytes(memory)}")
    most = max(fits, default=1)
    # Where the largest batch with gradients fits whole, larger ones without gradients do, too.
    return None if most >= largest else most


def _fits(needs: Sequence[Need], batch: int, room: int) -> bool:
    return all(need.nbytes(batch) <= room for need in needs)


def denoiser_flops(pipe: Any, size: int | None = None) -> float:
    """Floating-point operations of the denoiser for one latent, forward; a multiplication and an addition are two."""
    with torch.no_grad(), _AsOnDevice(denoiser_of(pipe).dtype) as device:
        _denoise(pipe, _meta_weights(pipe, _denoiser_name(pipe), ()), text=False, size=size)
    return float(device.flops)


def text_flops(pipe: Any) -> float:
    """Operations for a prompt: two for each token and weight of the text encoders, tables of embeddings left out."""
    tokens = blank(pipe).tokens
    weights = dict.fromkeys(tokens, 0)
    for name, weight in parameters_of(pipe):
        owner = name.partition(".")[0]
        if owner in weights and "embedding" not in name and "shared" not in name:
            weights[owner] += weight.numel()
    return float(sum(2.0 * weights[name] * count for name, count in tokens.items()))


def need_of(pipe: Any, backward: Pass) -> Need:
    """What a backward pass needs on a pipeline of a family with an adaptor, its weights not counted."""
    fixed = backward.texts * _saved_by_encoders(pipe, backward) if backward.texts else 0
    if not backward.samples:
        return Need(0, 0, fixed)
    denoiser, weights = denoiser_of(pipe), _meta_weights(pipe, _denoiser_name(pipe), backward.trained)
    saved, device = _Saved(weights.values()), _AsOnDevice(denoiser.dtype)
    with _in_units(denoiser, saved.unit), saved, device:
        _denoise(pipe, weights, text=backward.texts > 0, size=backward.size)
    return Need(backward.samples, saved.nbytes, fixed, saved.thrifty, float(device.flops))


def _saved_by_encoders(pipe: Any, backward: Pass) -> int:
    """Bytes that a prompt keeps in the encoders that are trained, or that read soft tokens."""
    tokens, trained = blank(pipe).tokens, backward.trained
    owners = {name.partition(".")[0] for name in trained} & tokens.keys()
    names = owners or attacked_encoders(pipe, backward.encoders)
    return sum(_saved_by_encoder(pipe, name, tokens[name], trained) for name in tokens if name in names)


def _saved_by_encoder(pipe: Any, name: str, tokens: int, trained: Collection[str]) -> int:
    encoder: Any = component(pipe, name)
    weights = _meta_weights(pipe, name, trained)
    soft = not any(weight.requires_grad for weight in weights.values())
    table = encoder.get_input_embeddings().weight
    embedded = partial(torch.zeros, 1, tokens, table.shape[1], device=_META, dtype=encoder.dtype, requires_grad=soft)
    with ExitStack() as stack:
        # T5 has its table under two names.
        for module in encoder.modules():
            if isinstance(module, nn.Embedding) and module.weight.shape == table.shape:
                stack.callback(module.register_forward_hook(lambda *_: embedded()).remove)
        saved = stack.enter_context(_Saved(weights.values()))
        stack.enter_context(_AsOnDevice(encoder.dtype))
        functional_call(encoder, weights, (torch.zeros(1, tokens, dtype=torch.long, device=_META),))
    return saved.nbytes


def _denoiser_name(pipe: Any) -> str:
    return next(iter(denoisers_of(pipe)))


class _Call(nn.Module):
    """The denoiser as its adaptor calls it, so that weights on the meta device can take the place of its own."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.add_module(_denoiser_name(pipe), denoiser_of(pipe))
        self._pipe = pipe

    def forward(self, noisy: torch.Tensor, times: torch.Tensor, condition: Condition) -> torch.Tensor:
        return adaptor_of(self._pipe).predict(self._pipe, noisy, times, condition, 1.0)


def _denoise(pipe: Any, weights: Mapping[str, torch.Tensor], *, text: bool, size: int | None) -> None:
    """One latent through the denoiser on the meta device, with gradients to its weights and to the text."""
    dtype, name = denoiser_of(pipe).dtype, _denoiser_name(pipe)
    condition = blank(pipe).condition.to(_META, dtype)
    for value in (condition.states, condition.pooled) if text else ():
        if value is not None:
            value.requires_grad_()
    latents = torch.zeros(1, *latent_shape(pipe, size), device=_META, dtype=dtype)
    named = {f"{name}.{path}": weight for path, weight in weights.items()}
    functional_call(_Call(pipe), named, (latents, torch.zeros(1, device=_META), condition))


def _meta_weights(pipe: Any, owner: str, trained: Collection[str]) -> dict[str, torch.Tensor]:
    module, wanted = component(pipe, owner), set(trained)
    named = {name: torch.empty_like(value, device=_META) for name, value in module.named_parameters()}
    for name, value in named.items():
        plain = ".".join(step for step in name.split(".") if step not in ("base_layer", "_orig_mod"))
        value.requires_grad_(f"{owner}.{plain}" in wanted)
    return named | {name: torch.empty_like(value, device=_META) for name, value in module.named_buffers()}


class _Saved:
    """Counts the bytes of what is saved for the backward pass inside, weights not counted.

    Under gradient checkpointing there is what units are given, and what the largest of them saves.
    """

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        self._own = {_number(value) for value in weights}
        # Tensors live as long as this count, so that no other storage gets the number of one.
        self._storages: dict[int, tuple[torch.Tensor, int]] = {}
        self._given: dict[int, torch.Tensor] = {}
        self._unit, self._units = 0, 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    @property
    def nbytes(self) -> int:
        """How many."""
        return sum(_size(tensor) for tensor, _ in self._storages.values())

    @property
    def thrifty(self) -> int:
        """How many under gradient checkpointing."""
        units = {0: sum(map(_size, self._given.values()))}
        for number, (tensor, unit) in self._storages.items():
            if number not in self._given:
                units[unit] = units.get(unit, 0) + _size(tensor)
        return units.pop(0) + max(units.values(), default=0)

    def __enter__(self) -> _Saved:
        self._hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.__exit__(None, None, None)

    def unit(self, block: Callable[..., Any], *inputs: Any) -> Any:
        """What a block that can be computed again makes of its inputs."""
        for value in inputs:
            if isinstance(value, torch.Tensor) and _number(value) not in self._own:
                self._given.setdefault(_number(value), value)
        self._units += 1
        self._unit = self._units
        try:
            return block(*inputs)
        finally:
            self._unit = 0

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        if _number(tensor) not in self._own:
            self._storages.setdefault(_number(tensor), (tensor, self._unit))
        return tensor


def _number(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _size(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


@contextmanager
def _in_units(denoiser: nn.Module, run: Callable[..., Any]) -> Iterator[None]:
    """Inside, the denoiser hands the blocks that gradient checkpointing computes again to a function that runs them."""
    able: list[Any] = [module for module in denoiser.modules() if hasattr(module, "gradient_checkpointing")]
    before = [(module.gradient_checkpointing, getattr(module, _RUN, None)) for module in able]
    try:
        for module in able:
            module.gradient_checkpointing, module._gradient_checkpointing_func = True, run
        yield
    finally:
        for module, (on, own) in zip(able, before, strict=True):
            module.gradient_checkpointing, module._gradient_checkpointing_func = on, own


class _AsOnDevice(TorchFunctionMode):
    """What devices do otherwise than the meta device: attention is one kernel that keeps no matrix of attention, and
    under autocast products are computed in half precision and norms in float32. Counts the operations of products.

    Args:
        dtype: Of the module; half precision stands for autocast to it.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.flops, self._half = 0, dtype if dtype in _HALF else None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | dict(kwargs or {})
            query, key, value = given["query"], given["key"], given["value"]
            # Two products of [.., L, d] by [d, S] and back.
            self.flops += 4 * query.numel() * key.shape[-2]
            query, key, value = (_cast(part, self._half) for part in (query, key, value))
            mask = given.get("attn_mask")
            # A mask of truth values is made one of numbers.
            mask = None if mask is None else mask.to(_META, query.dtype)
            return _Attention.apply(query, key, value, mask)  # type: ignore[no-untyped-call]
        product = func in _PRODUCTS
        dtype = self._half if product else torch.float32 if func in _NORMS and self._half else None
        result = func(
            *(_cast(value, dtype) for value in args),
            **{name: _cast(value, dtype) for name, value in (kwargs or {}).items()},
        )
        if product:
            self.flops += 2 * result.numel() * _PRODUCTS[func]([*args, *(kwargs or {}).values()])
        return result


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    floats = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if floats and dtype is not None else value


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, *(() if mask is None else (mask,)))
        return output

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> Any:
        raise NotImplementedError
