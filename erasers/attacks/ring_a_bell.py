"""Ring-A-Bell: Tsai et al., "Ring-A-Bell! How Reliable are Concept Removal Methods?", ICLR 2024, arXiv 2310.10012."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from erasers.attacks.text_search import TextSearch, best_texts, check_room
from erasers.attacks.wording import swap, terms
from erasers.diffusion.adaptors.table import encoders_of
from erasers.diffusion.attacked import Vocabulary
from erasers.diffusion.clip import encode
from erasers.diffusion.draws import chances, picks
from erasers.diffusion.embedding import embedded
from erasers.diffusion.tokens import tokenise
from erasers.models.encoder_blocks import is_clip

if TYPE_CHECKING:
    from erasers.asks import Ask


@dataclass(frozen=True, kw_only=True)
class RingABell(TextSearch):
    """Find words whose text states are those of the prompt with more of the concept in them.

    The concept vector c is the mean of tau(with) - tau(without) over pairs of prompts, tau being the text states of all
    tokens; a genetic search over k token ids comes near h = tau(p) + eta c. The half of the population that is nearest
    survives; pairs of survivors have two children, which may swap their ends and have one token replaced.

    Of a pipeline with several text encoders, or with none of CLIP, tau is one vector of a text: see
    `diffusion.embedding.embedded`. That is what FLUX.1 reads of CLIP; of SDXL and Stable Diffusion 3 it is a part.

    Differs from the paper/official code: the pairs are the attacked prompts, with the concept's words and with them
    replaced by `without`; tokens are whole words, and each text is encoded as it would be typed; survivors are not
    encoded again.

    Args:
        k: Tokens; the paper has 16, 38 and 77.
        eta: Strength of the concept vector; the paper has 3 for nudity, 5 to 5.5 for violence.
        population: Texts at a time.
        generations: Times that half of them are replaced.
        crossover: Chance that a pair of children swap their ends.
        mutation: Chance that a child has one token replaced.
        pairs: Pairs of prompts, at most.
        without: What stands in the place of the concept's words in the second prompt of a pair.
        encoders: See `EncoderAttack`.
    """

    name = "ring_a_bell"
    space = "text"

    k: int = 16
    eta: float = 3.0
    population: int = 200
    generations: int = 3000
    crossover: float = 0.5
    mutation: float = 0.25
    pairs: int = 50
    without: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.k, self.generations, self.pairs) < 1 or self.population < 2:
            raise ValueError(
                "expected k, generations and pairs of at least 1 and a population of at least 2, got "
                f"{self.k}, {self.generations}, {self.pairs} and {self.population}"
            )
        if not 0 <= self.crossover <= 1 or not 0 <= self.mutation <= 1:
            raise ValueError(f"expected chances from 0 to 1, got {self.crossover} and {self.mutation}")

    @property
    def encodes(self) -> int:
        """See `TextSearch.encodes`."""
        return self.population + self.generations * (self.population - self.population // 2)

    @torch.no_grad()
    def targets(self, pipe: Any, asks: Sequence[Ask]) -> dict[str, torch.Tensor]:
        """h `[tokens, d]` by the text of a prompt: see `TextSearch.targets`.

        Raises:
            ValueError: No prompt names the concept.
        """
        encoders = self.attacked(pipe)
        check_room(pipe, encoders, self.k)
        pairs = {ask.text: swap(ask.text, terms(self.concept, ask), self.without) for ask in asks}
        named = [(text, other) for text, other in pairs.items() if " ".join(text.split()) != other][: self.pairs]
        if not named:
            raise ValueError("expected prompts that name the concept, got none; pass its words as `concept`")
        vector = concept_vector(*(states(pipe, list(side), encoders) for side in zip(*named, strict=True)))
        return {text: states(pipe, [text], encoders)[0] + self.eta * vector for text in pairs}

    @torch.no_grad()
    def search(
        self, pipe: Any, ask: Ask, target: torch.Tensor, words: Vocabulary, generator: torch.Generator
    ) -> list[str]:
        """See `TextSearch.search`."""

        def losses(rows: torch.Tensor) -> torch.Tensor:
            texts = [words.text(pipe, row) for row in rows]
            return (states(pipe, texts, tuple(words.ids)) - target).square().sum(dim=(1, 2)).cpu()

        start = picks(len(words), (self.population, self.k), generator)
        rows, values = evolve(
            start, losses, len(words), self.generations, self.crossover, self.mutation, generator=generator
        )
        return best_texts(pipe, words, rows, values, self.images - 1)


def states(pipe: Any, texts: Sequence[str], encoders: Sequence[str]) -> torch.Tensor:
    """tau `[texts, tokens, d]` in float32: all tokens of the one CLIP encoder of a pipeline, else one vector a text."""
    if tuple(encoders_of(pipe)) == tuple(encoders) and len(encoders) == 1 and is_clip(getattr(pipe, encoders[0])):
        return encode(pipe, tokenise(pipe, list(texts))).float()
    return embedded(pipe, texts, encoders)[:, None].float()


def concept_vector(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """The mean difference `[tokens, d]` of text states `[pairs, tokens, d]` with and without a concept."""
    return (positive - negative).mean(dim=0)


def evolve(
    rows: torch.Tensor,
    losses: Callable[[torch.Tensor], torch.Tensor],
    vocabulary: int,
    generations: int,
    crossover: float,
    mutation: float,
    *,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A genetic search.

    Args:
        rows: The population `[n, k]`, of numbers below `vocabulary`.
        losses: (rows `[m, k]`) -> `[m]`, less is better.
        vocabulary: What tokens are drawn from.
        generations: Times that the worse half is replaced by children of the better one.
        crossover: Chance that a pair of children swap their ends.
        mutation: Chance that a child has one token replaced.
        generator: Source of every random number.

    Returns:
        The last population and its losses `[n]`, the best first.
    """
    values = losses(rows)
    size = len(rows)
    for _ in range(generations):
        best = values.argsort(stable=True)[: size // 2]
        born = children(rows[best], size - size // 2, vocabulary, crossover, mutation, generator)
        rows, values = torch.cat([rows[best], born]), torch.cat([values[best], losses(born)])
    order = values.argsort(stable=True)
    return rows[order], values[order]


def children(
    parents: torch.Tensor, count: int, vocabulary: int, crossover: float, mutation: float, generator: torch.Generator
) -> torch.Tensor:
    """Children `[count, k]` of random pairs of parents `[n, k]`."""
    pairs, k = (count + 1) // 2, parents.shape[1]
    left, right = parents[picks(len(parents), (2, pairs), generator)]
    places = torch.arange(k)
    # A cut before place 1 to k - 1; a single token has none.
    cuts = 1 + picks(max(k - 1, 1), (pairs, 1), generator)
    ends = (places >= cuts) & (chances((pairs, 1), generator) < crossover)
    both = torch.cat([torch.where(ends, right, left), torch.where(ends, left, right)])[:count]
    hit = (places == picks(k, (count, 1), generator)) & (chances((count, 1), generator) < mutation)
    return torch.where(hit, picks(vocabulary, (count, 1), generator), both)
