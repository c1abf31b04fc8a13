"""What a pass through a network with gradients needs, by counting, and passes in parts that fit the memory there is.

A network is run once, for one sample, on the meta device, where tensors have shapes and no values: nothing is drawn,
trained or measured. What its backward pass needs is counted as it is saved.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from erasers.diffusion.latents import latent_shape
from erasers.models.components import component

_META = torch.device("meta")
_HALF = (torch.float16, torch.bfloat16)
_PRODUCTS = (functional.linear, functional.conv2d)
_NORMS = (functional.group_norm, functional.layer_norm)
_UNITS = ("ResnetBlock2D", "BasicTransformerBlock")
"""What diffusers computes again under gradient checkpointing."""
_USED = 0.9
"""Share of the free memory of a device that is planned for; kernels and the allocator need the rest."""
_MEMORY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?([mgt])i?b?", re.ASCII)
_UNITS_OF_MEMORY = {"m": 2**20, "g": 2**30, "t": 2**40}
_together: ContextVar[int | None] = ContextVar("together", default=None)


@dataclass(frozen=True)
class Pass:
    """One backward pass of a method.

    Args:
        samples: Latents that go through the denoiser together.
        trained: Weights that get gradients.
        texts: Prompts that are encoded with gradients beside them.
    """

    samples: int
    trained: Collection[str] = ()
    texts: int = 0


@dataclass(frozen=True)
class Need:
    """What one backward pass needs.

    Args:
        samples: Latents that go through the denoiser together.
        sample: Bytes that each of them keeps for the backward pass.
        fixed: Bytes that are kept whatever their number.
    """

    samples: int
    sample: int
    fixed: int

    def nbytes(self, batch: int) -> int:
        """Bytes with at most so many latents together."""
        return self.fixed + self.sample * min(batch, self.samples)


@contextmanager
def at_most(samples: int | None) -> Iterator[None]:
    """Inside, at most so many samples go through the denoiser together where gradients are taken; None: all of them."""
    token = _together.set(samples)
    try:
        yield
    finally:
        _together.reset(token)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of torch says that a device is full."""
    told = any(words in str(error) for words in ("out of memory", "can't allocate memory"))
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and told)


@contextmanager
def memory_told() -> Iterator[None]:
    """Inside, a device that runs out of memory is an error that says what to set.

    Raises:
        ValueError: It did.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(
            "the device ran out of memory; set memory to less than it has, such as 16GB, or take "
            "gradient_checkpointing=true, a rank above 0, fewer trained weights or half precision"
        ) from error


def samples_together(pipe: Any, passes: Sequence[Pass], memory: int | None) -> int | None:
    """How many samples of these backward passes fit the memory there is; None: all of them.

    Args:
        pipe: A pipeline of a UNet and a CLIP text encoder.
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
    needs = [need_of(pipe, one) for one in passes]
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


def together(count: int) -> bool:
    """Whether so many samples may go through the denoiser together."""
    most = _together.get()
    return most is None or count <= most


def parts(count: int) -> list[slice]:
    """The rows of a batch in parts of what may go through the denoiser together."""
    size = _together.get() or count
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


Piece = Callable[[], Mapping[str, torch.Tensor]]
"""Makes the named losses of a part of a batch, each times the share of its rows that the part has."""


class Summands:
    """A loss in summands, each of which is made, and derived, when the one before is gone.

    Args:
        pieces: Make them.
        total: Named losses of a piece -> the loss of it.
    """

    def __init__(self, pieces: Sequence[Piece], total: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]) -> None:
        self._pieces, self._total = pieces, total
        self.shown: dict[str, float] = {}
        """The named losses of the whole batch, once all pieces were made."""

    def __len__(self) -> int:
        return len(self._pieces)

    def make(self, number: int) -> torch.Tensor:
        """The loss of a piece."""
        losses = self._pieces[number]()
        for name, value in losses.items():
            self.shown[name] = self.shown.get(name, 0.0) + float(value.detach())
        return self._total(losses)


def mean_in_parts(count: int, loss: Callable[[slice], torch.Tensor]) -> Summands:
    """A mean over a batch, in summands.

    Args:
        count: Rows of the batch.
        loss: The mean over some of them.
    """

    def piece(rows: slice) -> dict[str, torch.Tensor]:
        return {"loss": loss(rows) * ((rows.stop - rows.start) / count)}

    return Summands([partial(piece, rows) for rows in parts(count)], lambda losses: losses["loss"])


def errors_in_parts(goals: Mapping[str, torch.Tensor], guess: Callable[[slice], torch.Tensor]) -> list[Piece]:
    """Mean squared errors of groups that go through the denoiser as one batch, in pieces.

    Args:
        goals: Name of a group -> what is to be predicted of it `[n, ...]`; the batch has the groups in that order.
        guess: What is predicted of some rows of the batch.
    """

    def piece(rows: slice) -> dict[str, torch.Tensor]:
        guessed, losses, start = guess(rows), {}, 0
        for name, goal in goals.items():
            low, high = max(start, rows.start) - start, min(start + len(goal), rows.stop) - start
            if low < high:
                own = guessed[low + start - rows.start : high + start - rows.start]
                losses[name] = functional.mse_loss(own, goal[low:high]) * ((high - low) / len(goal))
            start += len(goal)
        return losses

    return [partial(piece, rows) for rows in parts(sum(map(len, goals.values())))]


def denoiser_flops(pipe: Any) -> float:
    """Floating-point operations of the denoiser for one latent, forward; a multiplication and an addition are two."""
    unet: Any = component(pipe, "unet")
    fused = _AsOnDevice(unet.dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, fused:
        _denoise(pipe, _meta_weights(unet, "unet", ()), text=False)
    return float(counter.get_total_flops() + fused.flops)


def free_memory(pipe: Any) -> int | None:
    """Bytes that the device of the denoiser has for more, and those of the pipeline; None on a CPU."""
    device = pipe.unet.device
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    own = sum(parameter.nbytes for _, parameter in parameters_of(pipe) if parameter.device.type == "cuda")
    return own + int(_USED * (torch.cuda.mem_get_info(device)[0] + cached))


def gigabytes(nbytes: float) -> str:
    """Bytes in GB of 2^30, or in MB of 2^20."""
    return f"{nbytes / 2**30:.3g} GB" if nbytes >= 2**30 else f"{nbytes / 2**20:.3g} MB"


def parse_memory(text: str) -> int:
    """Bytes of a text such as 24GB, 800MB or 24GiB, all of them powers of two.

    Raises:
        ValueError: Another text.
    """
    match = _MEMORY.fullmatch(text.strip().lower())
    found = float(match[1]) * _UNITS_OF_MEMORY[match[2]] if match else 0.0
    if not 0 < found < 2**60:
        raise ValueError(f"expected memory such as 24GB or 800MB, got {text!r:.40}")
    return int(found)


def need_of(pipe: Any, one: Pass, checkpointing: bool = False) -> Need:
    """What a backward pass needs on a pipeline of a UNet and a CLIP text encoder, its weights not counted."""
    text = one.texts > 0
    sample = _saved_by_denoiser(pipe, one.trained, text, checkpointing) if one.samples else 0
    fixed = one.texts * _saved_by_text_encoder(pipe, one.trained) if text else 0
    return Need(one.samples, sample, fixed)


def _saved_by_denoiser(pipe: Any, trained: Collection[str], text: bool, checkpointing: bool) -> int:
    unet: Any = component(pipe, "unet")
    weights = _meta_weights(unet, "unet", trained)
    with _Saved(unet, weights, checkpointing) as saved, _AsOnDevice(unet.dtype):
        _denoise(pipe, weights, text=text)
    return saved.nbytes


def _saved_by_text_encoder(pipe: Any, trained: Collection[str]) -> int:
    """Bytes that a prompt keeps; what is trained is a part of the encoder, or soft tokens that it reads."""
    encoder: Any = component(pipe, "text_encoder")
    width = int(encoder.config.hidden_size)
    weights = _meta_weights(encoder, "text_encoder", trained)
    soft = not any(weight.requires_grad for weight in weights.values())
    ids = torch.zeros(1, _tokens(pipe), dtype=torch.long, device=_META)
    handle = encoder.get_input_embeddings().register_forward_hook(
        lambda *_: torch.zeros(1, _tokens(pipe), width, device=_META, dtype=encoder.dtype, requires_grad=soft)
    )
    try:
        with _Saved(encoder, weights, False) as saved, _AsOnDevice(encoder.dtype):
            functional_call(encoder, weights, (ids,))
    finally:
        handle.remove()
    return saved.nbytes


def _denoise(pipe: Any, weights: Mapping[str, torch.Tensor], *, text: bool) -> None:
    """One latent through the denoiser on the meta device, with gradients to its weights and to the text."""
    unet: Any = component(pipe, "unet")
    latents = torch.zeros(1, *latent_shape(pipe), device=_META, dtype=unet.dtype)
    states = torch.zeros(1, _tokens(pipe), _text_width(unet), device=_META, dtype=unet.dtype, requires_grad=text)
    more: dict[str, Any] = {}
    if getattr(pipe, "text_encoder_2", None) is not None:
        width = int(pipe.text_encoder_2.config.projection_dim)
        pooled = torch.zeros(1, width, device=_META, dtype=unet.dtype)
        more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.zeros(1, 6, device=_META)}
    arguments = {"encoder_hidden_states": states, **more}
    functional_call(unet, dict(weights), (latents, torch.zeros(1, device=_META)), arguments)


def _meta_weights(module: nn.Module, part: str, trained: Collection[str]) -> dict[str, torch.Tensor]:
    wanted = set(trained)
    named = {name: torch.empty_like(value, device=_META) for name, value in module.named_parameters()}
    for name, value in named.items():
        plain = ".".join(step for step in name.split(".") if step not in ("base_layer", "_orig_mod"))
        value.requires_grad_(f"{part}.{plain}" in wanted)
    return named | {name: torch.empty_like(value, device=_META) for name, value in module.named_buffers()}


class _Saved:
    """Counts the bytes of what a module saves for the backward pass inside, its weights not counted.

    With checkpointing it counts what the units keep of their output, and what the largest of them saves.
    """

    def __init__(self, module: nn.Module, weights: Mapping[str, torch.Tensor], checkpointing: bool) -> None:
        self._module, self._checkpointing = module, checkpointing
        self._own = {value.untyped_storage()._cdata for value in weights.values()}
        self._storages: dict[int, tuple[torch.Tensor, str]] = {}
        self._unit, self._outputs = "", 0
        self._handles: list[Any] = []

    @property
    def nbytes(self) -> int:
        """How many."""
        units: dict[str, int] = {}
        for tensor, unit in self._storages.values():
            units[unit] = units.get(unit, 0) + tensor.untyped_storage().nbytes()
        outside = units.pop("", 0)
        if not self._checkpointing:
            return outside + sum(units.values())
        return outside + self._outputs + max(units.values(), default=0)

    def __enter__(self) -> _Saved:
        for name, module in self._module.named_modules():
            if self._checkpointing and type(module).__name__ in _UNITS:
                self._handles.append(module.register_forward_pre_hook(self._entering(name)))
                self._handles.append(module.register_forward_hook(self._leaving))
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.__exit__(None, None, None)
        for handle in self._handles:
            handle.remove()

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        number = tensor.untyped_storage()._cdata
        if number not in self._own:
            # The tensor lives as long as this count, so that no other storage gets its number.
            self._storages.setdefault(number, (tensor, self._unit))
        return tensor

    def _entering(self, name: str) -> Any:
        def enter(*_: object) -> None:
            self._unit = name

        return enter

    def _leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        self._unit, self._outputs = "", self._outputs + output.nbytes


class _AsOnDevice(TorchFunctionMode):
    """What devices do otherwise than the meta device: attention is one kernel that keeps no matrix of attention, and
    under autocast products are computed in half precision and norms in float32.

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
            given = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs or {})
            query, key, value = given["query"], given["key"], given["value"]
            # Two products of [.., L, d] by [d, S] and back.
            self.flops += 4 * query.numel() * key.shape[-2]
            return _Attention.apply(  # type: ignore[no-untyped-call]
                *(_cast(one, self._half) for one in (query, key, value))
            )
        dtype = self._half if func in _PRODUCTS else torch.float32 if func in _NORMS and self._half else None
        return func(
            *(_cast(one, dtype) for one in args), **{name: _cast(one, dtype) for name, one in (kwargs or {}).items()}
        )


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    floats = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if floats and dtype is not None else value


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> Any:
        raise NotImplementedError


def parameters_of(pipe: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """(full name, parameter) of all components."""
    for part, module in pipe.components.items():
        if isinstance(module, nn.Module):
            for name, parameter in module.named_parameters():
                yield f"{part}.{name}", parameter


def text_flops(pipe: Any) -> float:
    """Operations for a prompt: two for each token and weight of the text encoders, tables of embeddings left out."""
    parts = [part for name, part in pipe.components.items() if name.startswith("text_encoder") and part is not None]
    weights = sum(p.numel() for part in parts for name, p in part.named_parameters() if "embedding" not in name)
    return float(2.0 * weights * _tokens(pipe))


def _text_width(unet: Any) -> int:
    width = unet.config.cross_attention_dim
    return int(width if isinstance(width, int) else max(width))


def _tokens(pipe: Any) -> int:
    return int(pipe.text_encoder.config.max_position_embeddings)
