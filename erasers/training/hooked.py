"""What is trained beside frozen weights and runs as hooks, and the patch that it becomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from erasers.concept import Concept
from erasers.models.components import component, find_parameter
from erasers.models.fingerprints import weight_hashes
from erasers.models.readers import text_readers
from erasers.patch import Patch
from erasers.patch.build import patch_meta
from erasers.patch.hooks import Hook
from erasers.patch.targets import find_target
from erasers.training.student import Student, rounded

if TYPE_CHECKING:
    from erasers.eraser import Eraser


class HookedStudent(Student):
    """A student whose hooks learn: no weight of the pipeline is trained.

    Args:
        pipe: A diffusers pipeline.
        hooks: With parameters among their parts, in float32.
        beneath: Names of the weights that they stand behind, by which the patch knows its model.
        generator: As for `Student`.
    """

    def __init__(self, pipe: Any, hooks: Sequence[Hook], beneath: Sequence[str], *, generator: torch.Generator) -> None:
        learned = [part for hook in hooks for part in hook.parts.values() if isinstance(part, nn.Parameter)]
        super().__init__(pipe, (), generator=generator, beside=learned)
        self.hooks = tuple(hooks)
        self._beneath = {name: find_parameter(pipe, name, linear=False).data for name in beneath}

    @contextmanager
    def placed(self, strength: float = 1.0) -> Iterator[None]:
        """Inside, the hooks run; gradients reach `parameters`.

        Args:
            strength: Of the hooks.
        """
        with ExitStack() as stack:
            for hook in self.hooks:
                root = component(self._pipe, hook.component)
                for handle in hook.install(find_target(self._pipe, hook), strength, root):
                    stack.callback(handle.remove)
            yield

    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each weight that a hook stands behind."""
        return weight_hashes(self._pipe, self._beneath)

    def finished(self) -> Sequence[Hook]:
        """The hooks of the patch."""
        return self.hooks

    def patch(self, eraser: Eraser, concepts: Sequence[Concept]) -> Patch:
        """The hooks: matrices in float16, the rest in float32.

        Raises:
            ValueError: Training has diverged.
        """
        tensors = {
            f"hook/{hook.target}/{hook.kind}/{name}": _shipped(part.detach())
            for hook in self.finished()
            for name, part in hook.parts.items()
        }
        for name, value in tensors.items():
            if not torch.isfinite(value).all():
                raise ValueError(f"training has diverged: {name} is not finite; lower lr")
        dtype = next(iter(self._beneath.values())).dtype
        more: dict[str, Any] = {"weights": self._beneath, "readers": text_readers(self._pipe)}
        return Patch(tensors, patch_meta(eraser.name, eraser.config(), concepts, self.fingerprints(), dtype, **more))


def _shipped(value: torch.Tensor) -> torch.Tensor:
    return rounded(value) if value.dim() > 1 else value.to("cpu", torch.float32)
