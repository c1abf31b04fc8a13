"""Several processes that train one patch: each on draws of its own, with the mean of their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed


def place() -> tuple[int, int]:
    """(number of this process, how many there are), as `torch.distributed` says it."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def own_file(path: str | Path) -> Path:
    """A file of this process, where all were told of one."""
    number, world = place()
    return Path(path) if world == 1 else Path(f"{path}.{number}-of-{world}")


def own_draws(generator: torch.Generator) -> None:
    """Give each process random numbers of its own, where all had the same so far."""
    number, world = place()
    if world > 1:
        seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        generator.manual_seed(seed + number)


@contextmanager
def shared_gradients(
    optimizers: Sequence[torch.optim.Optimizer], parameters: Sequence[torch.nn.Parameter]
) -> Iterator[None]:
    """Inside, a step of an optimizer that has one of these parameters takes the mean gradient of all processes."""
    if place()[1] == 1:
        yield
        return
    wanted = {id(parameter) for parameter in parameters}

    def average(*_: object) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= place()[1]

    mine = [
        one for one in optimizers if any(id(each) in wanted for group in one.param_groups for each in group["params"])
    ]
    handles = [one.register_step_pre_hook(average) for one in mine]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def same_start(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Give all processes the values of the first."""
    if place()[1] > 1:
        for parameter in parameters:
            distributed.broadcast(parameter.data, src=0)


def everywhere(value: int, device: torch.device) -> list[int]:
    """The values of all processes, in their order; all of them get them."""
    number, world = place()
    if world == 1:
        return [value]
    found = torch.zeros(world, dtype=torch.long, device=device)
    found[number] = value
    distributed.all_reduce(found)
    return [int(one) for one in found.tolist()]


def largest(value: float, device: torch.device) -> float:
    """The largest value of all processes; all of them get it."""
    if place()[1] == 1:
        return value
    found = torch.tensor([value], dtype=torch.float32, device=device)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return float(found)


def anywhere(fact: bool, device: torch.device) -> bool:
    """Whether it holds in any process; all of them get the answer."""
    if place()[1] == 1:
        return fact
    found = torch.tensor([int(fact)], device=device)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return bool(found)


def agreed(why: str, device: torch.device) -> str:
    """Why training stops: "" as long as no process wants to; all of them get an answer."""
    wish = anywhere(bool(why), device)
    return why or ("another process stopped" if wish else "")
