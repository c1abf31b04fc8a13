"""Several methods as one: each is fitted on what those before it leave, and all are one patch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasers.eraser.eraser import Eraser

if TYPE_CHECKING:
    import torch

    from erasers.concept import Concepts
    from erasers.patch import Patch


@dataclass(frozen=True, kw_only=True)
class Stack(Eraser):
    """Methods on top of each other.

    The second method reads a pipeline that has the first one's patch already, and so on: a closed form holds what a
    training left, a training is attacked behind a gate. Every method draws from a generator of its own with the same
    seed, as it would alone.

    Args:
        members: The methods, in the order in which they are fitted.

    Raises:
        ValueError: Fewer than two methods, one twice, or a stack among them.
    """

    members: tuple[Eraser, ...]

    def __post_init__(self) -> None:
        names = [member.name for member in self.members]
        if len(names) < 2 or len(set(names)) < len(names) or any(isinstance(member, Stack) for member in self.members):
            raise ValueError(
                f"expected at least two methods in a stack, each once, got {' and '.join(names) or 'none'}"
            )
        facts: dict[str, Any] = {"name": "+".join(names), "everywhere": False}
        facts |= {
            fact: any(getattr(member, fact) for member in self.members) for fact in ("trains", "sees", "keeps", "hooks")
        }
        for name, value in facts.items():
            object.__setattr__(self, name, value)

    def check_pipe(self, pipe: Any) -> None:
        """See `Eraser.check_pipe`."""
        for member in self.members:
            member.check_pipe(pipe)

    def fit(
        self,
        pipe: Any,
        concepts: Concepts,
        *,
        generator: torch.Generator | None = None,
        progress: bool = True,
        checkpoint: str | Path | None = None,
        memory: int | None = None,
        first: Patch | None = None,
    ) -> Patch:
        """Fit the methods, one on top of the other; see `Eraser.fit`.

        Args:
            pipe: As there.
            concepts: As there.
            generator: Its seed is that of every method's own; 0 when None.
            progress: As there.
            checkpoint: Of the one method that trains: see `TrainedEraser.fit`.
            memory: Bytes that there are, for every method that trains.
            first: The first method's patch, where it was fitted before.

        Raises:
            UnsupportedPipeline: One of the methods does not support it.
            PatchError: Patches that cannot be one: see `erasers.patch.merge.merged`.
            ValueError: As there, or a checkpoint where several methods train.
        """
        import torch

        from erasers.patch.merge import merged

        self.check_pipe(pipe)
        if checkpoint is not None and sum(member.trains for member in self.members) > 1:
            raise ValueError(
                f"expected no checkpoint of {self.name}, in which several methods train; fit one at a time"
            )
        seed = generator.initial_seed() if generator else 0
        patches: list[Patch] = [] if first is None else [first]
        with ExitStack() as applied:
            for patch in patches:
                applied.enter_context(patch.applied(pipe))
            for member in self.members[len(patches) :]:
                own = torch.Generator().manual_seed(seed)
                more: dict[str, Any] = {"checkpoint": checkpoint, "memory": memory} if member.trains else {}
                patches.append(member.fit(pipe, concepts, generator=own, progress=progress, **more))
                applied.enter_context(patches[-1].applied(pipe))
        return merged(patches, method=self.name, config=self.config())

    def config(self) -> dict[str, Any]:
        """The hyper-parameters of all methods, each as `<method>.<field>`."""
        return {f"{member.name}.{key}": value for member in self.members for key, value in member.config().items()}


def members_of(eraser: Eraser) -> Sequence[Eraser]:
    """The methods of a stack, or a method alone."""
    return eraser.members if isinstance(eraser, Stack) else (eraser,)
