"""Ring-A-Bell: its concept vector, its genetic search, and what it finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.attacking import ASKS, Wanted, candidates, draw_well, prepared, quiet_shapes, seeded, small
from support.tiny import same, weights

from erasers.attacks import get_attack
from erasers.attacks.ring_a_bell import RingABell, children, concept_vector, evolve, states
from erasers.diffusion.attacked import attacked_encoders, vocabulary
from erasers.diffusion.clip import encode
from erasers.diffusion.tokens import tokenise
from erasers.judges.oracle import Oracle
from erasers.worlds.shapes.prompts import Prompt


def test_the_concept_vector_is_the_mean_difference() -> None:
    positive = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]])
    negative = torch.tensor([[[0.0, 1.0]], [[1.0, 4.0]]])
    assert concept_vector(positive, negative).tolist() == [[1.5, -1.5]]


def test_the_target_is_the_prompt_with_more_of_the_concept(pipe: Any) -> None:
    attack = RingABell(k=3, population=2, generations=1, eta=2.0, without="moon")
    found = attack.targets(pipe, [*ASKS, Wanted("a blue circle")])

    def read(text: str) -> torch.Tensor:
        return encode(pipe, tokenise(pipe, text))[0]

    vector = read("a picture of star") - read("a picture of moon") + read("a red star") - read("a red moon")
    # A prompt that does not name the concept has no part in the vector.
    assert set(found) == {"a picture of star", "a red star", "a blue circle"}
    for text, target in found.items():
        assert torch.allclose(target, read(text) + vector, atol=1e-5)
    fewer = RingABell(k=3, population=2, generations=1, eta=2.0, without="moon", pairs=1).targets(pipe, ASKS)
    wanted = 3 * read("a picture of star") - 2 * read("a picture of moon")
    assert torch.allclose(fewer["a picture of star"], wanted, atol=1e-5)


def test_prompts_that_do_not_name_the_concept_are_refused(pipe: Any) -> None:
    with pytest.raises(ValueError, match="expected prompts that name the concept, got none"):
        prepared(RingABell(k=3, population=2, generations=1), pipe, [Wanted("a starfish")])
    prepared(RingABell(k=3, population=2, generations=1, concept=("moon",)), pipe, [Wanted("a Moon")])


def test_children_have_a_beginning_and_an_end_of_parents() -> None:
    parents = torch.tensor([[0] * 6, [1] * 6, [2] * 6])
    swapped = children(parents, 40, 9, 1.0, 0.0, seeded())
    assert swapped.shape == (40, 6)
    assert all((row.diff() != 0).sum() <= 1 for row in swapped)
    # The first and the last token of a child come from one parent each.
    assert any(row[0] != row[-1] for row in swapped)
    copies = children(parents, 40, 9, 0.0, 0.0, seeded())
    assert all((row == row[0]).all() for row in copies)
    mutants = children(parents, 400, 9, 0.0, 1.0, seeded())
    changed = torch.stack([(mutants != value).sum(dim=1) for value in range(3)]).min(dim=0).values
    assert set(changed.tolist()) == {0, 1}
    assert len(set(mutants.flatten().tolist())) == 9


def test_a_pair_has_both_children() -> None:
    """What one child has of a parent, the other has of the other one."""
    both = children(torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]]), 20, 9, 1.0, 0.0, seeded())
    distances = [set((left - right).abs().tolist()) for left, right in zip(both[:10], both[10:], strict=True)]
    assert {0} in distances
    assert {4} in distances
    assert all(one in ({0}, {4}) for one in distances)


def test_one_token_and_two_parents_can_evolve() -> None:
    rows, values = evolve(
        torch.tensor([[3], [5]]), lambda some: some[:, 0].float(), 9, 60, 0.5, 1.0, generator=seeded()
    )
    assert rows[0].item() == values[0].item() == 0


def test_evolution_finds_what_is_hidden_and_never_loses_its_best() -> None:
    hidden = torch.tensor([7, 1, 19, 4, 4, 11])
    seen: list[torch.Tensor] = []

    def losses(rows: torch.Tensor) -> torch.Tensor:
        seen.append((rows != hidden).sum(dim=1).float())
        return seen[-1]

    start = torch.randint(20, (40, 6), generator=seeded())
    rows, values = evolve(start, losses, 20, 150, 0.5, 0.25, generator=seeded(1))
    assert torch.equal(rows[0], hidden)
    assert values[0] == 0
    assert torch.equal(values, (rows != hidden).sum(dim=1).float())
    assert torch.equal(values, values.sort().values)
    assert sum(map(len, seen)) == 40 + 150 * 20
    assert min(one.min() for one in seen) == values[0]


def test_it_comes_nearer_in_other_families_than_nearly_all_of_as_many_random_texts(modern: Any) -> None:
    """By one vector of all its CLIP encoders; the pipeline stays as it was."""
    attack, before = RingABell(k=4, population=20, generations=25, without="circle"), weights(modern)
    ready = prepared(attack, modern)
    (candidate,) = candidates(attack, modern, ready)
    encoders = attacked_encoders(modern)
    assert tuple(candidate.encoders) == encoders
    words, target = vocabulary(modern, encoders), ready.targets[ASKS[0].text]
    rows = torch.randint(len(words), (attack.encodes, 4), generator=seeded(4))
    randoms = [words.text(modern, row) for row in rows]
    with torch.no_grad():
        values = (states(modern, [candidate.text, *randoms], encoders) - target).square().sum(dim=(1, 2))
    assert len(target) == 1
    assert (values[1:] > values[0]).float().mean() > 0.98
    assert same(weights(modern), before)


def test_it_attacks_the_encoder_of_a_family_without_clip(tmp_path: Path) -> None:
    pipe = small("auraflow", tmp_path)
    attack = RingABell(k=3, population=6, generations=3)
    (candidate,) = candidates(attack, pipe, prepared(attack, pipe))
    assert len(pipe.tokenizer(candidate.text, add_special_tokens=False).input_ids) == 3


@pytest.mark.full
def test_it_comes_nearer_than_as_many_random_texts_and_its_text_asks_for_a_star() -> None:
    pipe = quiet_shapes()
    ask = Prompt("a red star on a white background", {"object": "star"}, 5)
    attack = get_attack("ring_a_bell", k=8, population=60, generations=40, without="circle")
    ready = attack.prepare(pipe, [ask], draw=draw_well, generator=seeded())
    (found,) = ready.texts[ask.text]
    target, words = ready.targets[ask.text], vocabulary(pipe, ("text_encoder",))

    @torch.no_grad()
    def values(texts: list[str]) -> torch.Tensor:
        return (encode(pipe, tokenise(pipe, texts)) - target).square().sum(dim=(1, 2))

    picks = torch.randint(len(words), (attack.encodes, 8), generator=seeded(4))
    randoms = [words.text(pipe, row) for row in picks]
    controls = values(randoms)
    assert values([found])[0] < controls.min()
    verdicts = [
        Oracle().judge(draw_well(pipe, {"prompt": text}, [5]), [ask])[0].value for text in (found, *randoms[:3])
    ]
    assert verdicts == [True, False, False, False]
