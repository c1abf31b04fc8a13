"""Attacks: ways to make an erased model draw what was erased.

An attack is a frozen keyword-only dataclass that subclasses `Attack`; its fields are its hyper-parameters. It gets
ready on the unedited pipeline (`prepare`), then runs on the edited one and yields candidates, which are drawn and
judged in that order until one shows the concept (`attacks.running`). It only calls the live modules of the pipeline, so
that it reaches edits of weights and hooks alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch

from erasers.options import Bound, check_fields, require_bounds

if TYPE_CHECKING:
    from PIL import Image

    from erasers.asks import Ask
    from erasers.attacks.noisy_ddim import StepNoise
    from erasers.diffusion.needs import Pass
    from erasers.patch import Patch

Space: TypeAlias = Literal["text", "embedding", "latent", "weights"]
EncoderUsed: TypeAlias = Literal["attacked", "original", "none"]
Draw: TypeAlias = Callable[[Any, Mapping[str, Any], Sequence[int]], "list[Image.Image]"]
"""`draw(pipe, arguments, seeds)`: one picture a seed, with the sampler settings of the benchmark.

The arguments are those of the pipeline's call: `prompt`, a text for all pictures or a list with one for each, and
`latents` `[1, c, h, w]` where the noise is not that of the seed.
"""


@dataclass(frozen=True)
class Budget:
    """What an attack may spend, or has spent, on one prompt; a batch of four counts four.

    Args:
        gradients: Backward passes through the denoiser.
        encodes: Texts that went through a text encoder, besides those that were drawn.
        images: Pictures drawn and judged, the plain prompt's included.
    """

    gradients: int = 0
    encodes: int = 0
    images: int = 1


@dataclass(frozen=True)
class Preparation:
    """What `Attack.prepare` takes, all of it with the unedited model.

    Args:
        images: Pictures drawn.
        passes: Other passes of the denoiser, without gradients.
        gradients: Backward passes through the denoiser.
        encodes: Texts that go through a text encoder.
    """

    images: int = 0
    passes: int = 0
    gradients: int = 0
    encodes: int = 0


@dataclass(frozen=True, eq=False)
class Candidate:
    """One thing to draw.

    Args:
        text: The prompt; the pipeline tokenises it itself.
        tokens: Word of the prompt -> embeddings `[k, d]` of the soft tokens that stand in its place.
        latents: Noise `[1, c, h, w]` of unit variance, where the attack chooses it; None takes that of the seed.
        patch: Weights to draw it with, on top of those that the pipeline has.
        noise: Fresh noise in every step of the sampler, which the pipeline's own may not add.
    """

    text: str
    tokens: Mapping[str, torch.Tensor] = field(default_factory=dict)
    latents: torch.Tensor | None = None
    patch: Patch | None = None
    noise: StepNoise | None = None

    @property
    def plain(self) -> bool:
        """Whether it is a text and nothing else, so that several can be drawn together."""
        return not self.tokens and self.latents is None and self.patch is None and self.noise is None

    @contextmanager
    def placed(self, pipe: Any) -> Iterator[dict[str, Any]]:
        """Inside, `pipe` draws this candidate when it is called with the yielded arguments."""
        from erasers.diffusion.soft import SoftPrompt

        with ExitStack() as stack:
            if self.patch is not None:
                stack.enter_context(self.patch.applied(pipe))
            if self.noise is not None:
                stack.enter_context(self.noise.placed(pipe))
            arguments: dict[str, Any] = {"prompt": self.text}
            if self.tokens:
                counts = {word: len(vectors) for word, vectors in self.tokens.items()}
                prompt = SoftPrompt(pipe, self.text, counts)
                stack.enter_context(prompt.placed(self.tokens))
                arguments["prompt"] = prompt.text
            if self.latents is not None:
                arguments["latents"] = self.latents
            yield arguments


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An attack with its hyper-parameters. Subclasses add fields, with the paper's values, and the three methods.

    `space` is what the attacker chooses: text that anybody can type, embeddings, starting noise, or weights. `encoder`
    is the text encoder that it searches with: the one under attack, the unedited one, or none. `bounds` are those of
    its numbers. `embedded` has the field values that tasks of an embedded model take where they give none.
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


_ATTACKS: Mapping[str, str] = {
    "cce": "CCE",
    "mma": "MMA",
    "noise": "Noise",
    "p4d": "P4D",
    "random_prefix": "RandomPrefix",
    "random_text": "RandomText",
    "relearning": "Relearning",
    "ring_a_bell": "RingABell",
    "unlearn_diff_atk": "UnlearnDiffAtk",
    "words": "Words",
}
"""Name of the attack, which is that of its module -> its class."""


def list_attacks() -> list[str]:
    """Names of the attacks, sorted."""
    return sorted(_ATTACKS)


def get_attack(name: str, **options: Any) -> Attack:
    """Build an attack.

    Args:
        name: One of `list_attacks`.
        **options: Field values.

    Raises:
        ValueError: Unknown name, unknown option or a value that the attack refuses.
    """
    if name not in _ATTACKS:
        raise ValueError(f"expected an attack among {', '.join(list_attacks())}, got {name!r}")
    cls: type[Attack] = getattr(import_module(f"erasers.attacks.{name}"), _ATTACKS[name])
    known = [field.name for field in fields(cls)]
    for option in options:
        if option not in known:
            raise ValueError(f"expected options of {name!r} among {', '.join(known)}, got {option!r}")
    return cls(**options)
