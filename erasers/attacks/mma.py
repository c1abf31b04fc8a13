"""A text attack in the manner of Yang et al., "MMA-Diffusion", CVPR 2024, arXiv 2311.17516, by Zou et al.'s GCG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from erasers.attacks.text_search import TextSearch, best_texts, check_room
from erasers.attacks.wording import terms
from erasers.diffusion.attacked import Vocabulary
from erasers.diffusion.draws import picks
from erasers.diffusion.embedding import embedded
from erasers.diffusion.gradients import LossScale, frozen
from erasers.diffusion.soft import SoftPrompt
from erasers.options import Bound

if TYPE_CHECKING:
    from erasers.asks import Ask

SLOT = "<text>"


@dataclass(frozen=True, kw_only=True)
class MMA(TextSearch):
    """Find words, none of them the concept's, whose pooled text embedding is that of the prompt.

    Greedy coordinate gradients on `1 - cos(pool(s), pool(p))`: at each place the `top` tokens of least gradient with
    respect to the one-hot choice are candidates; of `batch` texts with one token replaced by a candidate the best one
    is the next. `pool` is the pooled embedding of the attacked encoders, those of several side by side and of one
    length, so that `cos` is the mean of theirs; of encoders other than CLIP it is the mean of the last states.

    Differs from the paper: written from its equation alone; the banned words are those of the concept, and words that
    contain one; tokens are whole words, and each text is encoded as it would be typed. The attack on safety checkers
    is left out.

    Args:
        k: Tokens.
        steps: Replacements of one token.
        batch: Texts from which each is chosen.
        top: Candidates at each place.
        encoders: See `EncoderAttack`.
    """

    name = "mma"
    space = "text"
    bounds = (Bound("k steps batch top", 1),)

    k: int = 20
    steps: int = 1000
    batch: int = 512
    top: int = 256

    @property
    def encodes(self) -> int:
        """See `TextSearch.encodes`."""
        return self.steps * (self.batch + 1)

    @torch.no_grad()
    def targets(self, pipe: Any, asks: Sequence[Ask]) -> dict[str, torch.Tensor]:
        """The pooled embedding `[d]` by the text of a prompt: see `TextSearch.targets`."""
        encoders = self.attacked(pipe)
        check_room(pipe, encoders, self.k)
        return {ask.text: embedded(pipe, [ask.text], encoders)[0].float() for ask in asks}

    def search(
        self, pipe: Any, ask: Ask, target: torch.Tensor, words: Vocabulary, generator: torch.Generator
    ) -> list[str]:
        """See `TextSearch.search`.

        Raises:
            ValueError: No token is left that is not banned.
        """
        words = words.without(banned(words.texts(pipe), terms(self.concept, ask)))
        if not len(words):
            raise ValueError("expected tokens that do not name the concept, got none; shorten `concept`")
        prompt = SoftPrompt(pipe, SLOT, {SLOT: self.k}, encoders=self.encoders)
        current = picks(len(words), self.k, generator)
        seen, values = torch.empty(0, self.k, dtype=torch.long), torch.empty(0)
        scale = LossScale(pipe)
        for _ in range(self.steps):
            slope = gradient(pipe, prompt, target, words, current, scale)
            rows = swaps(current, slope, min(self.top, len(words)), self.batch, generator)
            losses = _losses(pipe, target, words, rows)
            current = rows[losses.argmin()]
            seen, values = _leaders(torch.cat([seen, rows]), torch.cat([values, losses]), self.images - 1)
        return best_texts(pipe, words, seen, values, self.images - 1)


def distance(embeddings: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - cos `[rows]` of embeddings `[rows, d]` and a target `[d]`."""
    return 1 - functional.cosine_similarity(embeddings.float(), target.float(), dim=-1)


@torch.enable_grad()
def gradient(
    pipe: Any, prompt: SoftPrompt, target: torch.Tensor, words: Vocabulary, current: torch.Tensor, scale: LossScale
) -> torch.Tensor:
    """The gradient `[k, words]` of the distance with respect to the one-hot choice of words at each place."""
    table = words.table(pipe)
    vectors = table[current.to(table.device)].requires_grad_()
    with frozen(pipe), prompt.placed({SLOT: vectors}):
        slopes = None
        while slopes is None:
            embeddings = embedded(pipe, [prompt.text], prompt.encoders)
            slopes = scale.slopes(distance(embeddings, target).sum(), [vectors])
    return (slopes[0] @ table.T).cpu()


def swaps(current: torch.Tensor, slope: torch.Tensor, top: int, batch: int, generator: torch.Generator) -> torch.Tensor:
    """Texts `[batch, k]` that differ from `current` `[k]` at one place, where one of the `top` of least slope stands.

    Args:
        current: A choice of words.
        slope: Gradient `[k, words]`.
        top: Candidates at each place.
        batch: Number of texts.
        generator: Source of every random number.
    """
    candidates = (-slope).topk(top, dim=-1).indices
    places, ranks = picks(len(current), batch, generator), picks(top, batch, generator)
    rows = current.repeat(batch, 1)
    rows[torch.arange(batch), places] = candidates[places, ranks]
    return rows


def banned(texts: Sequence[str], concept: Sequence[str]) -> torch.Tensor:
    """Which of n texts of one token are a word of the concept's, or contain a term of one word."""
    words = {word for term in concept for word in term.lower().split()}
    stems = [term.lower() for term in concept if len(term.split()) == 1]
    lower = [text.lower() for text in texts]
    return torch.tensor([text in words or any(stem in text for stem in stems) for text in lower], dtype=torch.bool)


@torch.no_grad()
def _losses(pipe: Any, target: torch.Tensor, words: Vocabulary, rows: torch.Tensor) -> torch.Tensor:
    """The distance `[n]` of texts of words `[n, k]` as they would be typed."""
    texts = [words.text(pipe, row) for row in rows]
    return distance(embedded(pipe, texts, tuple(words.ids)), target).cpu()


def _leaders(rows: torch.Tensor, values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` best of different rows `[n, k]` with their values `[n]`, the best first."""
    best: dict[tuple[int, ...], int] = {}
    for row in values.argsort(stable=True).tolist():
        best.setdefault(tuple(rows[row].tolist()), row)
        if len(best) == count:
            break
    keep = torch.tensor(list(best.values()), dtype=torch.long)
    return rows[keep], values[keep]
