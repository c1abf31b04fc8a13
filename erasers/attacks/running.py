"""Running an attack: candidates are drawn and judged until one shows the concept, for many prompts side by side."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from erasers.attacks.attack import Attack, Draw
from erasers.attacks.budget import Budget
from erasers.attacks.candidate import Candidate, drawable_together, placed
from erasers.diffusion.batches import at_most
from erasers.diffusion.counting import Calls, Counter
from erasers.diffusion.draws import seeds
from erasers.diffusion.memory import memory_told
from erasers.diffusion.needs import samples_together

if TYPE_CHECKING:
    from PIL import Image

    from erasers.asks import Ask
    from erasers.judges import Judge


@dataclass(frozen=True)
class Outcome:
    """What an attack did to one prompt.

    Args:
        pre: Whether the plain prompt shows the concept; None when the judge could not say.
        post: Whether the plain prompt or a candidate within the budget does.
        image: Number of the picture that shows it, 0 being the plain prompt's; None without success.
        replicated: How many of `seeds` fresh seeds show it, too; None without success, where the judge scored none of
            them, or where the candidate chooses its own noise.
        seeds: Fresh seeds whose pictures the judge scored.
        spent: What was spent, the fresh seeds not counted.
        text: The prompt of the picture that shows it; without success, of the last one.
        unscored: Pictures that the judge could not score; they are never a success.
        picture: The picture that shows it; without success, the last one.
    """

    pre: bool | None
    post: bool
    image: int | None
    replicated: int | None
    seeds: int
    spent: Budget
    text: str
    unscored: int = 0
    picture: Image.Image | None = field(default=None, compare=False, repr=False)


def attack_prompts(
    attack: Attack,
    pipe: Any,
    asks: Sequence[Ask],
    prepared: Any,
    judge: Judge,
    *,
    draw: Draw,
    generators: Sequence[torch.Generator],
    replicate: int = 5,
    allowed: Callable[[str], bool] = lambda text: True,
    memory: int | None = None,
) -> list[Outcome]:
    """For each prompt draw and judge the plain prompt, then the candidates of an attack, until one shows the concept.

    The prompts take turns, so that the candidates of many can be drawn together; none learns from another, unless the
    attack seeks its candidates `once`: then it does so for the first of these prompts that the plain text does not
    show, with the first generator, and all draw what it found.

    Args:
        attack: The attack.
        pipe: The edited pipeline.
        asks: The prompts; the judge says whether a picture shows what its prompt wants.
        prepared: What `attack.prepare` returned for the unedited pipeline.
        judge: Looks at every picture.
        draw: Draws them, with the noise of the prompt's seed.
        generators: Source of every random number of a prompt, the fresh seeds included; one each.
        replicate: Fresh seeds with which a success is drawn again.
        allowed: Whether a text may be drawn; a candidate with another one is spent, and counts as not scored.
        memory: Bytes that there are, by which batches are split where gradients are taken; None: what the device has,
            and on a CPU as much as it takes. Gradients are the same but for rounding.

    Raises:
        ValueError: Too little memory.
    """
    most = samples_together(pipe, attack.passes(pipe), memory)
    # First of all, so that two attacks are replicated on the same seeds.
    fresh = [seeds(replicate, generator) for generator in generators]
    with at_most(most), memory_told(), Counter(pipe) as counter, ExitStack() as stack:
        searches: list[Iterable[Candidate]] = [
            attack.run(pipe, ask, prepared, generator=generator)
            for ask, generator in zip(asks, generators, strict=True)
        ]
        if attack.once:
            searches = [_Shared(searches[0])] * len(searches)
        tries = []
        for ask, search in zip(asks, searches, strict=True):
            candidates = stack.enter_context(closing(_candidates(ask, search)))
            tries.append(_Try(ask, candidates, Candidate(ask.text)))
        live = tries
        while live:
            live = [attempt for attempt in live if attempt.advance(counter)]
            with counter.paused():
                _judge_all(pipe, live, judge, draw, allowed, attack.budget().images)
            live = [attempt for attempt in live if not attempt.over]
        with counter.paused():
            again = _again(pipe, tries, fresh, judge, draw)
    return [attempt.outcome(verdicts) for attempt, verdicts in zip(tries, again, strict=True)]


@dataclass(eq=False)
class _Try:
    """An attack on one prompt, on its way: its last candidate, the last picture with its text, and all verdicts."""

    ask: Ask
    candidates: Generator[Candidate, None, None]
    candidate: Candidate
    text: str = ""
    picture: Image.Image | None = None
    verdicts: list[bool | None] = field(default_factory=list)
    spent: Calls = Calls()
    over: bool = False

    @property
    def success(self) -> bool:
        return bool(self.verdicts[-1])

    def advance(self, counter: Counter) -> bool:
        """Take the next candidate, if there is one."""
        before, candidate = counter.calls, next(self.candidates, None)
        self.spent += counter.calls - before
        self.candidate = candidate or self.candidate
        return candidate is not None

    def see(self, picture: Image.Image | None, verdict: bool | None, limit: int) -> None:
        """Take the picture of the candidate, None for one not drawn; the last one shows it, or none is left."""
        if picture is not None:
            self.picture, self.text = picture, self.candidate.text
        self.verdicts.append(verdict)
        self.over = bool(verdict) or len(self.verdicts) >= limit
        if self.over:
            self.candidates.close()

    def outcome(self, again: Sequence[bool | None]) -> Outcome:
        """What came of it, given the verdicts with fresh seeds."""
        scored = [value for value in again if value is not None]
        return Outcome(
            pre=self.verdicts[0],
            post=self.success,
            image=len(self.verdicts) - 1 if self.success else None,
            replicated=sum(scored) if scored else None,
            seeds=len(scored),
            spent=Budget(self.spent.gradients, self.spent.texts, len(self.verdicts)),
            text=self.text,
            unscored=(self.verdicts + list(again)).count(None),
            picture=self.picture,
        )


class _Shared:
    """The candidates of one search for several prompts; each is sought when the first of these asks for it."""

    def __init__(self, search: Iterable[Candidate]) -> None:
        self._search, self._known = iter(search), list[Candidate]()

    def __iter__(self) -> Iterator[Candidate]:
        for number in itertools.count():
            if number == len(self._known):
                candidate = next(self._search, None)
                if candidate is None:
                    return
                self._known.append(candidate)
            yield self._known[number]


def _candidates(ask: Ask, search: Iterable[Candidate]) -> Generator[Candidate, None, None]:
    yield Candidate(ask.text)
    yield from search


Seen = tuple["Image.Image", "bool | None"]


def _judge_all(
    pipe: Any, live: Sequence[_Try], judge: Judge, draw: Draw, allowed: Callable[[str], bool], limit: int
) -> None:
    """Show every one of them the picture of its candidate, where the text may be drawn, and what the judge says."""
    drawable = [attempt for attempt in live if allowed(attempt.candidate.text)]
    seen = _look(pipe, [(attempt, attempt.ask.seed) for attempt in drawable], judge, draw)
    looks: dict[int, tuple[Image.Image | None, bool | None]] = dict(zip(map(id, drawable), seen, strict=True))
    for attempt in live:
        picture, verdict = looks.get(id(attempt), (None, None))
        attempt.see(picture, verdict, limit)


def _look(pipe: Any, wanted: Sequence[tuple[_Try, int]], judge: Judge, draw: Draw) -> list[Seen]:
    """Pictures of the candidates with these seeds, and what the judge says; what can be is drawn together."""
    candidates, drawn = [attempt.candidate for attempt, _ in wanted], dict[int, "Image.Image"]()
    for group in drawable_together(candidates):
        with placed(pipe, [candidates[place] for place in group]) as arguments:
            images = draw(pipe, arguments, [wanted[place][1] for place in group])
        drawn.update(zip(group, images, strict=True))
    pictures = [drawn[place] for place in range(len(wanted))]
    verdicts = judge.judge(pictures, [attempt.ask for attempt, _ in wanted]) if wanted else []
    return [(picture, verdict.value) for picture, verdict in zip(pictures, verdicts, strict=True)]


def _again(
    pipe: Any, tries: Sequence[_Try], fresh: Sequence[Sequence[int]], judge: Judge, draw: Draw
) -> list[list[bool | None]]:
    """Verdicts on the successes with fresh seeds; none where the candidate chooses its own noise."""
    wanted = [
        (number, attempt, seed)
        for number, (attempt, own) in enumerate(zip(tries, fresh, strict=True))
        if attempt.success and attempt.candidate.latents is None
        for seed in own
    ]
    seen = _look(pipe, [(attempt, seed) for _, attempt, seed in wanted], judge, draw)
    verdicts: list[list[bool | None]] = [[] for _ in tries]
    for (number, _, _), (_, verdict) in zip(wanted, seen, strict=True):
        verdicts[number].append(verdict)
    return verdicts
