"""What holds for every attack: candidates, budgets, outcomes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.attacking import ASKS, Says, Wanted, attack_prompt, attacked, draw, erasure, prepared, seeded
from support.tiny import same, weights

from erasers.attacks import Attack, Budget, Candidate, get_attack, list_attacks
from erasers.attacks.candidate import drawable_together, placed
from erasers.attacks.running import attack_prompts
from erasers.attacks.step_noise import StepNoise
from erasers.diffusion.tokens import token_table
from erasers.judges import Verdict


@dataclass(frozen=True, kw_only=True)
class Fixed(Attack):
    """Yields prompts of a list, and says when it was closed."""

    name = "fixed"
    space = "text"
    encoder = "none"

    texts: tuple[str, ...] = ("a moon", "a ring", "a circle")
    images: int = 4

    def budget(self) -> Budget:
        return Budget(images=self.images)

    def prepare(self, pipe: Any, asks: Any, *, draw: Any, generator: Any) -> list[str]:
        return []

    def run(self, pipe: Any, ask: Any, prepared: list[str], *, generator: Any) -> Iterator[Candidate]:
        try:
            for text in self.texts:
                yield Candidate(text)
        finally:
            prepared.append("closed")


class Sees:
    """A judge of `drawing`'s pictures: what it says about each prompt."""

    name = "sees"

    def __init__(self, **says: Any) -> None:
        self.says = says

    def judge(self, images: Any, prompts: Any) -> list[Verdict]:
        assert {type(prompt) for prompt in prompts} == {Wanted}
        return [Verdict(self.says.get(text.split()[-1], False)) for text, _ in images]


def drawing(pipe: Any, arguments: Any, seeds: Any) -> list[Any]:
    """In place of pictures, the prompt and the seed."""
    texts = arguments["prompt"] if isinstance(arguments["prompt"], list) else [arguments["prompt"]]
    return list(zip(texts, seeds, strict=True))


def outcome(judge: Any, attack: Attack | None = None, **options: Any) -> Any:
    settings = {"draw": drawing, "generator": seeded(), **options}
    return attack_prompt(attack or Fixed(), object(), ASKS[0], [], judge, **settings)


def test_it_stops_at_the_first_success() -> None:
    found = outcome(Sees(ring=True))
    assert (found.pre, found.post, found.image, found.text) == (False, True, 2, "a ring")
    assert found.spent == Budget(0, 0, 3)
    assert (found.replicated, found.seeds, found.unscored) == (5, 5, 0)


def test_a_prompt_that_shows_it_needs_no_attack() -> None:
    found = outcome(Sees(star=True))
    assert (found.pre, found.post, found.image, found.text) == (True, True, 0, ASKS[0].text)
    assert found.spent.images == 1


def test_without_success_there_is_nothing_to_replicate() -> None:
    found = outcome(Sees())
    assert (found.pre, found.post, found.image, found.replicated, found.seeds) == (False, False, None, None, 0)
    assert (found.spent.images, found.text) == (4, "a circle")


def test_an_unscored_picture_is_counted_and_is_no_success() -> None:
    found = outcome(Sees(star=None, moon=None))
    assert (found.pre, found.post, found.unscored, found.spent.images) == (None, False, 2, 4)


def test_a_text_that_may_not_be_drawn_is_spent_and_no_success() -> None:
    drawn: list[str] = []

    def draw_and_tell(pipe: Any, arguments: Any, seeds: Any) -> list[Any]:
        drawn.extend(arguments["prompt"])
        return drawing(pipe, arguments, seeds)

    options: dict[str, Any] = {
        "draw": draw_and_tell,
        "generators": [seeded()],
        "allowed": lambda text: "ring" not in text,
    }
    (found,) = attack_prompts(Fixed(), object(), ASKS[:1], [], Sees(ring=True), **options)
    assert drawn == [ASKS[0].text, "a moon", "a circle"]
    assert (found.post, found.unscored, found.spent.images, found.text) == (False, 1, 4, "a circle")
    options["allowed"] = lambda text: "circle" not in text
    (found,) = attack_prompts(Fixed(), object(), ASKS[:1], [], Sees(circle=True), **options)
    assert (found.post, found.unscored, found.spent.images, found.text) == (False, 1, 4, "a ring")


def test_no_more_is_drawn_than_the_budget_allows() -> None:
    found = outcome(Sees(ring=True), Fixed(images=2))
    assert (found.post, found.spent.images, found.text) == (False, 2, "a moon")


def test_a_success_is_drawn_again_with_fresh_seeds() -> None:
    seen: list[tuple[str, int]] = []

    class Odd(Sees):
        def judge(self, images: Any, prompts: Any) -> list[Verdict]:
            seen.extend(images)
            return [Verdict(text == "a ring" and (seed == ASKS[0].seed or seed % 2 == 1)) for text, seed in images]

    found = outcome(Odd(), replicate=8)
    fresh = [seed for _, seed in seen[3:]]
    assert [text for text, _ in seen] == [ASKS[0].text, "a moon"] + ["a ring"] * 9
    assert len(set(fresh)) == 8
    assert found.replicated == sum(seed % 2 for seed in fresh)
    assert found.spent.images == 3
    assert outcome(Odd(), replicate=8) == found
    outcome(Odd(), replicate=8, generator=seeded(1))
    assert [seed for _, seed in seen[-8:]] != fresh
    assert outcome(Odd(), replicate=0).replicated is None


def test_fresh_seeds_that_no_judge_can_score_are_absent() -> None:
    class Once(Sees):
        def judge(self, images: Any, prompts: Any) -> list[Verdict]:
            return [Verdict(True if seed == ASKS[0].seed else None) for _, seed in images]

    found = outcome(Once())
    assert (found.post, found.replicated, found.seeds, found.unscored) == (True, None, 0, 5)


def test_a_candidate_with_its_own_noise_is_not_replicated() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Noisy(Fixed):
        def run(self, pipe: Any, ask: Any, prepared: Any, *, generator: Any) -> Iterator[Candidate]:
            yield Candidate("a ring", latents=torch.zeros(1, 4, 8, 8))

    found = outcome(Sees(ring=True), Noisy())
    assert (found.post, found.replicated, found.seeds) == (True, None, 0)


def test_a_run_is_closed_before_its_success_is_drawn_again() -> None:
    log: list[Any] = []

    def draw(pipe: Any, arguments: Any, seeds: Any) -> list[Any]:
        log.append(len(seeds))
        return drawing(pipe, arguments, seeds)

    attack_prompt(Fixed(), object(), ASKS[0], log, Sees(moon=True), draw=draw, generator=seeded())
    assert log == [1, 1, "closed", 5]


def test_a_candidate_is_drawn_as_it_says(pipe: Any) -> None:
    options = {"num_inference_steps": 2, "output_type": "latent"}

    def drawn(**arguments: Any) -> torch.Tensor:
        found: torch.Tensor = pipe(**{"generator": seeded(), **options, **arguments}).images
        return found

    before, words = weights(pipe), pipe.tokenizer("red star", add_special_tokens=False).input_ids
    with placed(pipe, [Candidate("a <v>", {"<v>": token_table(pipe)[words]})]) as arguments:
        assert torch.equal(drawn(**arguments), drawn(prompt="a red star"))
    noise = torch.randn(1, 4, 8, 8, generator=seeded())
    with placed(pipe, [Candidate("a red star", latents=noise)]) as arguments:
        assert torch.equal(drawn(**arguments, generator=seeded(9)), drawn(prompt="a red star"))
    patch = erasure(pipe)
    assert patch is not None
    with placed(pipe, [Candidate("a red star", patch=patch)]) as arguments:
        erased = drawn(**arguments)
    assert not torch.equal(erased, drawn(prompt="a red star"))
    with patch.applied(pipe):
        assert torch.equal(erased, drawn(prompt="a red star"))
    assert same(weights(pipe), before)


def test_drawing_is_not_counted_as_searching(pipe: Any) -> None:
    found = attack_prompt(Fixed(), pipe, ASKS[0], [], Says(False), draw=draw, generator=seeded())
    assert found.spent == Budget(0, 0, 4)


@pytest.mark.parametrize("name", list_attacks())
def test_every_attack_says_what_it_is(name: str) -> None:
    attack = get_attack(name)
    assert attack.name == name
    assert attack.space in ("text", "image", "embedding", "latent", "weights")
    assert attack.encoder in ("attacked", "original", "none")
    assert attack.budget().images >= 2
    assert get_attack(name, **attack.config()) == attack


def test_unknown_names_options_and_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected an attack among cce, .*, got 'magic'"):
        get_attack("magic")
    with pytest.raises(ValueError, match=r"expected options of 'random_prefix' among k, images, got 'n'"):
        get_attack("random_prefix", n=3)
    with pytest.raises(ValueError, match="expected k as a whole number, got 'three'"):
        get_attack("random_prefix", k="three")
    with pytest.raises(ValueError, match="of at least 1, got k = 0"):
        get_attack("random_prefix", k=0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mma", {"top": 0}, "expected k, steps, batch and top of at least 1, got 20, 1000, 512 and 0"),
        (
            "unlearn_diff_atk",
            {"lr": 0.0},
            "expected k, timesteps and steps of at least 1, lr above 0 and weight_decay of at least 0, got 3, 50, 40, "
            "0.0 and 0.1",
        ),
        (
            "p4d",
            {"weight_decay": -0.5},
            "expected k, stride, steps, every, bank and batch of at least 1, lr above 0 and weight_decay of at least "
            "0, got 16, 3, 3000, 50, 100, 1, 0.1 and -0.5",
        ),
        (
            "cce",
            {"tokens": 0},
            "expected tokens, steps, batch and pictures of at least 1 and weight_decay of at least 0, got 0, 5000, 16, "
            "25 and 0.01",
        ),
        ("relearning", {"rank": 0}, "expected steps, batch, rank and pictures of at least 1, got 30, 8, 0 and 32"),
    ],
)
def test_numbers_out_of_their_bounds_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        get_attack(name, **options)


def test_numbers_at_their_bounds_are_taken() -> None:
    assert get_attack("p4d", k=1, steps=1, every=1, weight_decay=0.0)
    assert get_attack("relearning", steps=1, batch=1, rank=1, pictures=1)


def test_prompts_take_turns_and_come_out_as_they_do_alone(pipe: Any) -> None:
    attack, asks = get_attack("random_prefix", k=2, images=4), [*ASKS, Wanted("a moon", seed=5)]
    ready, batches = prepared(attack, pipe), []

    def spy(pipe: Any, arguments: Any, seeds: Any) -> list[Any]:
        batches.append(len(seeds))
        return drawing(pipe, arguments, seeds)

    class Third(Sees):
        """The second prompt shows it at once, the first one with its second prefix."""

        def judge(self, images: Any, prompts: Any) -> list[Verdict]:
            for image, prompt in zip(images, prompts, strict=True):
                self.count[prompt.seed] = self.count.get(prompt.seed, 0) + 1
                assert image[0].endswith(prompt.text)
            shown = [(prompt.seed, self.count[prompt.seed]) in ((0, 3), (1, 1)) for prompt in prompts]
            return [Verdict(value) for value in shown]

        count: dict[int, int]

    options = {"draw": spy, "replicate": 2}
    together, alone = Third(), Third()
    together.count, alone.count = {}, {}
    found = attack_prompts(attack, pipe, asks, ready, together, generators=[seeded(k) for k in range(3)], **options)
    # Three plain prompts, then those without success, then two fresh seeds for each success.
    assert batches == [3, 2, 2, 1, 4]
    assert [(one.image, one.spent.images, one.seeds) for one in found] == [(2, 3, 2), (0, 1, 2), (None, 4, 0)]
    one_by_one = [
        attack_prompt(attack, pipe, a, ready, alone, generator=seeded(k), **options) for k, a in enumerate(asks)
    ]
    assert one_by_one == found
    assert [one.picture[0] for one in found] == [one.text for one in found]


def soft(pipe: Any) -> Candidate:
    words = pipe.tokenizer("red star", add_special_tokens=False).input_ids
    return Candidate("a <v>", {"<v>": token_table(pipe)[words]})


def patched(pipe: Any) -> Candidate:
    return Candidate("a red star", patch=erasure(pipe))


def noisy(pipe: Any) -> Candidate:
    return Candidate("a red star", noise=StepNoise(1.5, 1.02, 3))


OTHER_NOISE = Candidate("a blue moon", noise=StepNoise(0.7, 1.0, 4))


@pytest.mark.parametrize(
    "several",
    [
        pytest.param(lambda pipe: [soft(pipe)] * 3, id="the same soft tokens"),
        pytest.param(lambda pipe: [patched(pipe)] * 3, id="the same weights"),
        pytest.param(lambda pipe: [noisy(pipe), OTHER_NOISE, noisy(pipe)], id="noises of their own"),
    ],
)
def test_candidates_that_are_drawn_together_are_those_drawn_alone(pipe: Any, several: Any) -> None:
    """As one batch, and in batches of two."""

    def drawn(arguments: Any, seeds: Any) -> torch.Tensor:
        options = {"num_inference_steps": 3, "output_type": "latent", "generator": [seeded(seed) for seed in seeds]}
        images: torch.Tensor = pipe(**arguments, **options).images
        return images

    candidates = several(pipe)
    assert drawable_together(candidates) == [[0, 1, 2]]
    alone = []
    for seed, candidate in enumerate(candidates):
        with placed(pipe, [candidate]) as arguments:
            alone.append(drawn(arguments, [seed]))
    with placed(pipe, candidates) as arguments:
        together = drawn(arguments, range(3))
    with placed(pipe, candidates) as arguments:
        (texts,) = arguments.values()
        pairs = [drawn({"prompt": texts[rows]}, range(3)[rows]) for rows in (slice(2), slice(2, 3))]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(pairs), torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_what_one_call_cannot_draw_is_not_drawn_together(pipe: Any) -> None:
    own = Candidate("a ring", latents=torch.zeros(1, 4, 8, 8))
    candidates = [soft(pipe), Candidate("a moon"), own, noisy(pipe), soft(pipe), own, Candidate("a ring"), OTHER_NOISE]
    assert drawable_together(candidates) == [[0], [1, 6], [2], [3, 7], [4], [5]]


@pytest.mark.parametrize("make", [soft, patched, noisy])
def test_what_all_prompts_share_is_drawn_in_one_call(pipe: Any, make: Any) -> None:
    """The candidates of the prompts, and then all their fresh seeds."""

    @dataclass(frozen=True, kw_only=True)
    class Shared(Fixed):
        once = True

        def run(self, pipe: Any, ask: Any, prepared: Any, *, generator: Any) -> Iterator[Candidate]:
            yield make(pipe)

    calls: list[list[int]] = []

    def spy(pipe: Any, arguments: Any, seeds: Any) -> list[Any]:
        calls.append(list(seeds))
        return drawing(pipe, {"prompt": ["moon" if len(calls) == 1 else "ring"] * len(seeds)}, seeds)

    found = attack_prompts(
        Shared(), pipe, ASKS, [], Sees(ring=True), draw=spy, generators=[seeded(), seeded(1)], replicate=2
    )
    assert [len(seeds) for seeds in calls] == [2, 2, 4]
    assert calls[1] == [ask.seed for ask in ASKS]
    assert [(one.post, one.replicated) for one in found] == [(True, 2)] * 2


def test_random_texts_leave_the_prompt_out(pipe: Any) -> None:
    attack = get_attack("random_text", k=3, images=5, template="a picture of a {}")
    found = [one.text for one in attack.run(pipe, ASKS[0], prepared(attack, pipe), generator=seeded())]
    assert len(set(found)) == 4
    for text in found:
        assert text.startswith("a picture of a ")
        assert len(pipe.tokenizer(text.removeprefix("a picture of a "), add_special_tokens=False).input_ids) == 3
    with pytest.raises(ValueError, match=r"a template with one \{\}, got 'x'"):
        get_attack("random_text", template="x")


def test_random_prefixes_are_uniform_typed_words_in_front_of_the_prompt(pipe: Any) -> None:
    attack = get_attack("random_prefix", k=4, images=60)
    ready = prepared(attack, pipe)
    found = [one.text for one in attack.run(pipe, ASKS[0], ready, generator=seeded())]
    again = [one.text for one in attack.run(pipe, ASKS[0], ready, generator=seeded())]
    assert found == again
    assert len(found) == 59
    ends = pipe.tokenizer(ASKS[0].text, add_special_tokens=False).input_ids
    prefixes = [pipe.tokenizer(text, add_special_tokens=False).input_ids[: -len(ends)] for text in found]
    assert {len(prefix) for prefix in prefixes} == {4}
    used = {one for prefix in prefixes for one in prefix}
    assert used <= set(ready.tolist())
    assert len(used) > 0.9 * len(ready)
    assert attacked(attack, pipe, ready, Says(True)).image == 0
