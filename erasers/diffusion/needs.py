"""What a pass through a network with gradients needs, by counting.

A network is run once, for one sample, on the meta device, where tensors have shapes and no values: nothing is drawn,
trained or measured. What its backward pass needs is counted as it is saved.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from erasers.diffusion.latents import latent_shape
from erasers.diffusion.memory import free_memory, gigabytes
from erasers.models.components import component, parameters_of

_META = torch.device("meta")
_HALF = (torch.float16, torch.bfloat16)
_PRODUCTS = (functional.linear, functional.conv2d)
_NORMS = (functional.group_norm, functional.layer_norm)
_UNITS = ("ResnetBlock2D", "BasicTransformerBlock")
"""What diffusers computes again under gradient checkpointing."""


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


def denoiser_flops(pipe: Any) -> float:
    """Floating-point operations of the denoiser for one latent, forward; a multiplication and an addition are two."""
    unet: Any = component(pipe, "unet")
    fused = _AsOnDevice(unet.dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, fused:
        _denoise(pipe, _meta_weights(unet, "unet", ()), text=False)
    return float(counter.get_total_flops() + fused.flops)


def need_of(pipe: Any, backward: Pass, checkpointing: bool = False) -> Need:
    """What a backward pass needs on a pipeline of a UNet and a CLIP text encoder, its weights not counted."""
    text = backward.texts > 0
    sample = _saved_by_denoiser(pipe, backward.trained, text, checkpointing) if backward.samples else 0
    fixed = backward.texts * _saved_by_text_encoder(pipe, backward.trained) if text else 0
    return Need(backward.samples, sample, fixed)


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


def _meta_weights(module: nn.Module, owner: str, trained: Collection[str]) -> dict[str, torch.Tensor]:
    wanted = set(trained)
    named = {name: torch.empty_like(value, device=_META) for name, value in module.named_parameters()}
    for name, value in named.items():
        plain = ".".join(step for step in name.split(".") if step not in ("base_layer", "_orig_mod"))
        value.requires_grad_(f"{owner}.{plain}" in wanted)
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
                *(_cast(value, self._half) for value in (query, key, value))
            )
        dtype = self._half if func in _PRODUCTS else torch.float32 if func in _NORMS and self._half else None
        return func(
            *(_cast(value, dtype) for value in args),
            **{name: _cast(value, dtype) for name, value in (kwargs or {}).items()},
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


def text_flops(pipe: Any) -> float:
    """Operations for a prompt: two for each token and weight of the text encoders, tables of embeddings left out."""
    named = [(name, weight) for name, weight in parameters_of(pipe) if name.startswith("text_encoder")]
    weights = sum(weight.numel() for name, weight in named if "embedding" not in name)
    return float(2.0 * weights * _tokens(pipe))


def _text_width(unet: Any) -> int:
    width = unet.config.cross_attention_dim
    return int(width if isinstance(width, int) else max(width))


def _tokens(pipe: Any) -> int:
    return int(pipe.text_encoder.config.max_position_embeddings)
