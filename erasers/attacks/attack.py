"""What every attack is, and does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch

from erasers.attacks.budget import Budget, Preparation
from erasers.attacks.candidate import Candidate
from erasers.diffusion.adaptors.table import denoisers_of
from erasers.options import Bound, check_fields, require_bounds

if TYPE_CHECKING:
    from PIL import Image

    from erasers.asks import Ask
    from erasers.diffusion.needs import Pass

Space: TypeAlias = Literal["text", "image", "embedding", "latent", "weights"]
EncoderUsed: TypeAlias = Literal["attacked", "original", "none"]
Draw: TypeAlias = Callable[[Any, Mapping[str, Any], Sequence[int]], "list[Image.Image]"]
"""`draw(pipe, arguments, seeds)`: one picture a seed, with the sampler settings of the benchmark.

The arguments are those of the pipeline's call: `prompt`, a text for all pictures or a list with one for each,
`latents` `[1, c, h, w]` where the noise is not that of the seed, and what else all pictures are drawn from.
"""


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An attack with its hyper-parameters. Subclasses add fields, with the paper's values, and the three methods.

    `space` is what the attacker chooses: text that anybody can type, pictures, embeddings, starting noise, or weights.
    `encoder` is the text encoder that it searches with: the one under attack, the unedited one, or none. `bounds` are
    those of its numbers. `embedded` has the field values that tasks of an embedded model take where they give none.
    """

    name: ClassVar[str]
    space: ClassVar[Space]
    encoder: ClassVar[EncoderUsed]
    bounds: ClassVar[Sequence[Bound]] = ()
    embedded: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        """Check the type of every field, and bounds; subclasses check what else holds.

        Raises:
            ValueError: Names the field, what it takes and what it got.
        """
        check_fields(self)
        require_bounds(self, self.bounds)

    @property
    def once(self) -> bool:
        """Whether its candidates are the same for all prompts of a concept, and so are sought for the first alone."""
        return False

    def attacked(self, pipe: Any) -> tuple[str, ...]:
        """The components of a pipeline that it learns weights of; of `EncoderAttack` those that it searches with."""
        return tuple(denoisers_of(pipe)) if self.space == "weights" else ()

    def passes(self, pipe: Any) -> Sequence[Pass]:
        """Its backward passes through the denoiser; none where it takes no gradients, or of one latent at a time."""
        return ()

    @abstractmethod
    def budget(self) -> Budget:
        """What it spends on a prompt when nothing succeeds, `prepare` not counted."""

    def preparation(self, prompts: int) -> Preparation:
        """What `prepare` takes for so many prompts."""
        return Preparation()

    @abstractmethod
    def prepare(self, pipe: Any, asks: Sequence[Ask], *, draw: Draw, generator: torch.Generator) -> Any:
        """What it needs of the unedited model, once for all prompts: pictures, latents, targets, concept vectors.

        Args:
            pipe: The unedited pipeline; it is not changed.
            asks: The prompts that will be attacked, on any number of edited models.
            draw: Draws pictures as the benchmark does.
            generator: Source of every random number.

        Raises:
            UnsupportedPipeline: The attack does not support it; the message lists those that it does.
        """

    @abstractmethod
    def run(self, pipe: Any, ask: Ask, prepared: Any, *, generator: torch.Generator) -> Iterator[Candidate]:
        """The candidates for one prompt, in the order in which they are to be drawn, without the plain prompt.

        Args:
            pipe: The edited pipeline; between two candidates and at the end it is as it was.
            ask: One of the prompts that `prepare` saw.
            prepared: What `prepare` returned.
            generator: Source of every random number; the same seed gives the same candidates.
        """

    def config(self) -> dict[str, Any]:
        """The hyper-parameters as plain JSON-able values."""
        return asdict(self)
