"""Several processes of one command: each does a share of a task, or they train one patch together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """Which of several processes this is."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of_environment(cls) -> Share:
        """As `accelerate launch` and `torchrun` say it; the only one when they did not start this process.

        Raises:
            ValueError: Values that make no sense.
        """
        rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdigit() and world.isdigit() and int(rank) < int(world)):
            raise ValueError(f"expected RANK below WORLD_SIZE in the environment, got {rank!r} and {world!r}")
        return cls(int(rank), int(world))

    def split(self, items: Sequence[T]) -> tuple[list[T], list[T]]:
        """What this process does first, and what it does then if nobody else has.

        The others' items come from the other end, so that two processes seldom do the same.
        """
        others = [item for index, item in enumerate(items) if index % self.world != self.rank]
        return list(items[self.rank :: self.world]), others[::-1]


def rank_and_world() -> tuple[int, int]:
    """(rank of this process, how many there are), as `torch.distributed` says it."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def own_file(path: str | Path) -> Path:
    """A file of this process, where all were told of one."""
    rank, world = rank_and_world()
    return Path(path) if world == 1 else Path(f"{path}.{rank}-of-{world}")


def own_draws(generator: torch.Generator) -> None:
    """Give each process random numbers of its own, where all had the same so far."""
    rank, world = rank_and_world()
    if world > 1:
        seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        generator.manual_seed(seed + rank)


@contextmanager
def shared_gradients(
    optimizers: Sequence[torch.optim.Optimizer], parameters: Sequence[torch.nn.Parameter]
) -> Iterator[None]:
    """Inside, a step of an optimizer that has one of these parameters takes the mean gradient of all processes."""
    if rank_and_world()[1] == 1:
        yield
        return
    wanted = {id(parameter) for parameter in parameters}

    def average(*_: object) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= rank_and_world()[1]

    mine = [
        optimizer
        for optimizer in optimizers
        if any(id(parameter) in wanted for group in optimizer.param_groups for parameter in group["params"])
    ]
    handles = [optimizer.register_step_pre_hook(average) for optimizer in mine]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def same_start(parameters: Sequence[torch.Tensor]) -> None:
    """Give all processes the values of the first."""
    if rank_and_world()[1] > 1:
        for parameter in parameters:
            distributed.broadcast(parameter.data, src=0)


def everywhere(value: int, device: torch.device) -> list[int]:
    """The values of all processes, in their order; all of them get them."""
    rank, world = rank_and_world()
    if world == 1:
        return [value]
    values = torch.zeros(world, dtype=torch.long, device=device)
    values[rank] = value
    distributed.all_reduce(values)
    return [int(each) for each in values.tolist()]


def largest(value: float, device: torch.device) -> float:
    """The largest value of all processes; all of them get it."""
    if rank_and_world()[1] == 1:
        return value
    most = torch.tensor([value], dtype=torch.float32, device=device)
    distributed.all_reduce(most, op=distributed.ReduceOp.MAX)
    return float(most)


def anywhere(fact: bool, device: torch.device) -> bool:
    """Whether it holds in any process; all of them get the answer."""
    if rank_and_world()[1] == 1:
        return fact
    holds = torch.tensor([int(fact)], device=device)
    distributed.all_reduce(holds, op=distributed.ReduceOp.MAX)
    return bool(holds)


def agreed(why: str, device: torch.device) -> str:
    """Why training stops: "" as long as no process wants to; all of them get an answer."""
    wish = anywhere(bool(why), device)
    return why or ("another process stopped" if wish else "")
