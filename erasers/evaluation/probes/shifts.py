"""Directions of a concept inside of a model: what its denoiser computes with and without the concept, and adding the
difference where a model draws.

A direction is the mean difference of activations between prompts with the concept and the same prompts without it,
drawn from the same noise, for each time of the sampler. It is read, and added, for the half of a batch that the prompt
is in: what guides away from nothing stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from erasers.diffusion.adaptors.table import adaptor_of, denoisers_of
from erasers.models.families import UnsupportedPipeline
from erasers.models.ports import find_family
from erasers.patch.feature_hooks import first_output

ARGUMENTS = ("encoder_hidden_states", "pooled_projections")
"""Of a denoiser, what it reads of the prompt; they stand for modules at the site `text`."""
_MIDDLE = "mid_block"

Change = Callable[[str, float, torch.Tensor], torch.Tensor | None]
"""(path, time, rows `[n, ...]` of prompts) -> what becomes of them; None: they stay."""


class Recorded:
    """Means of activations over the prompts of a batch after the other: time -> module path -> mean."""

    def __init__(self) -> None:
        self._sums: dict[float, dict[str, torch.Tensor]] = {}
        self._counts: dict[tuple[float, str], int] = {}

    def add(self, path: str, time: float, rows: torch.Tensor) -> None:
        """Take the rows of some prompts `[n, ...]` into account; as `changed` calls it."""
        sums = self._sums.setdefault(time, {})
        total = rows.detach().float().cpu().sum(dim=0)
        sums[path] = sums[path] + total if path in sums else total
        self._counts[time, path] = self._counts.get((time, path), 0) + len(rows)

    @property
    def means(self) -> dict[float, dict[str, torch.Tensor]]:
        """Time, in the order in which they came, -> module path -> mean over prompts."""
        return {
            time: {path: total / self._counts[time, path] for path, total in sums.items()}
            for time, sums in self._sums.items()
        }


@dataclass(frozen=True)
class Direction:
    """What is added at a site, at each time.

    Args:
        times: Of the sampler `[s]`.
        shifts: Path of a module, or argument -> what is added for one prompt `[s, ...]`.
    """

    times: torch.Tensor
    shifts: Mapping[str, torch.Tensor]

    def at(self, path: str, time: float) -> torch.Tensor:
        """What is added at the nearest time."""
        return self.shifts[path][int((self.times - time).abs().argmin())]


def random_like(direction: Direction, generator: torch.Generator) -> Direction:
    """A random direction with the same length at every module and time."""
    shifts = {}
    for path, shift in direction.shifts.items():
        noise = torch.randn(shift.shape, generator=generator)
        lengths = [values.flatten(1).norm(dim=1) for values in (shift, noise)]
        shifts[path] = noise * (lengths[0] / lengths[1]).view(-1, *[1] * (shift.dim() - 1))
    return replace(direction, shifts=shifts)


def difference(with_it: Recorded, without: Recorded) -> Direction:
    """The direction from what was recorded of prompts without a concept to that of prompts with it.

    Raises:
        ValueError: They were drawn at other times, or their activations have other shapes.
    """
    times = list(without.means)
    if list(with_it.means) != times or not times:
        raise ValueError(f"expected prompts drawn at the same times, got {len(with_it.means)} and {len(times)}")
    shifts = {
        path: torch.stack([with_it.means[time][path] - without.means[time][path] for time in times])
        for path in without.means[times[0]]
    }
    return Direction(torch.tensor(times), shifts)


def sites_of(pipe: Any) -> dict[str, list[str]]:
    """The places at which a direction can be read and added: name -> arguments or module paths of the denoiser.

    `text` is what the denoiser reads; `attention` what every layer returns that reads it; `middle` the middle block,
    where there is one.
    """
    names = [path for path, _ in _denoiser(pipe).named_modules()]
    reader = "attn2" if find_family(pipe)[0].kind == "cross" else "attn"
    attention = [path for path in names if path.rpartition(".")[2] == reader]
    places = {"text": [*ARGUMENTS], "attention": attention, "middle": [path for path in names if path == _MIDDLE]}
    return {name: paths for name, paths in places.items() if paths}


def adding(direction: Direction, strength: float) -> Change:
    """What adds strength times a direction."""

    def add(path: str, time: float, rows: torch.Tensor) -> torch.Tensor:
        return rows + strength * direction.at(path, time).to(rows)

    return add


@contextmanager
def changed(pipe: Any, paths: Sequence[str], pictures: int, change: Change) -> Iterator[None]:
    """Inside, what arguments and modules of the denoiser are for prompts is seen, and becomes what `change` says.

    Args:
        pipe: A pipeline that draws without guidance, or asks with and without prompts in one batch, without them first.
        paths: As `sites_of` has them; arguments that the denoiser is not called with are left out.
        pictures: How many are drawn together.
        change: What becomes of them.

    Raises:
        UnsupportedPipeline: When it draws, a pipeline that asks for prompt and nothing one after the other.
    """
    denoiser = _denoiser(pipe)
    clock = _Clock(pipe, pictures)
    hooks = [denoiser.register_forward_pre_hook(clock, with_kwargs=True)]

    def argument(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not isinstance(kwargs.get(name), torch.Tensor):
                return None
            return args, {**kwargs, name: clock.only(kwargs[name], lambda rows: change(name, clock.time, rows))}

        return hook

    def returned(path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            old = first_output(output)
            new = clock.only(old, lambda rows: change(path, clock.time, rows))
            return new if old is output else (new, *output[1:])

        return hook

    for path in paths:
        if path in ARGUMENTS:
            hooks.append(denoiser.register_forward_pre_hook(argument(path), with_kwargs=True))
        else:
            hooks.append(denoiser.get_submodule(path).register_forward_hook(returned(path)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Clock:
    """Knows the time of the denoiser's present call, and which of its rows are those of prompts."""

    def __init__(self, pipe: Any, pictures: int) -> None:
        self._pipe, self._pictures = pipe, pictures
        self.time, self._first = 0.0, 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        time = kwargs["timestep"] if "timestep" in kwargs else args[1]
        latents: Any = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        self.time = float(torch.as_tensor(time).reshape(-1)[0])
        rows = len(latents)
        guided = getattr(self._pipe, "do_classifier_free_guidance", True)
        once = adaptor_of(self._pipe).guides(self._pipe) != "twice" or not guided
        if rows != self._pictures * (1 if once else 2):
            raise UnsupportedPipeline(
                f"expected {type(self._pipe).__name__} to ask about {self._pictures} pictures in one batch, with and "
                f"without their prompts, got {rows} rows; directions are for models that are guided so"
            )
        self._first = rows - self._pictures

    def only(self, rows: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor | None]) -> torch.Tensor:
        """All rows, with those of prompts changed."""
        new = change(rows[self._first :])
        return rows if new is None else torch.cat([rows[: self._first], new.to(rows)])


def _denoiser(pipe: Any) -> Any:
    denoisers = denoisers_of(pipe)
    if len(denoisers) != 1:
        raise UnsupportedPipeline(f"expected a pipeline of one denoiser, got {', '.join(denoisers)}")
    return next(iter(denoisers.values()))
