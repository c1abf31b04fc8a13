"""What every attack owes that hands on text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.attacking import ASKS, LONG, Says, attacked, candidates, erasure, prepared, seeded, texts
from support.families.all import FAMILIES
from support.selection import only
from support.tiny import same, weights

from erasers.attacks import Attack, get_attack
from erasers.diffusion.tokens import tokenizer_of

ATTACKS = {
    "p4d": {"k": 4, "steps": 6, "every": 3, "bank": 4, "batch": 2},
    "p4d insert": {"variant": "insert", "steps": 6, "every": 3, "bank": 4},
    "ring_a_bell": {"k": 4, "population": 8, "generations": 3},
    "ring_a_bell attacked": {"k": 4, "population": 8, "generations": 3, "encoder": "attacked", "images": 3},
    "mma": {"k": 4, "steps": 3, "batch": 8, "top": 4},
    "mma attacked": {"k": 4, "steps": 3, "batch": 8, "top": 4, "encoder": "attacked", "images": 3},
    "unlearn_diff_atk": {"timesteps": 3, "steps": 4, "lr": 0.1},
    "random_prefix": {"images": 5},
    "words": {"synonyms": ("moon",)},
}


@pytest.fixture(
    params=only(ATTACKS, "p4d", "ring_a_bell", "mma attacked", "unlearn_diff_atk", "random_prefix", "words")
)
def attack(request: pytest.FixtureRequest) -> Attack:
    return get_attack(request.param.partition(" ")[0], **ATTACKS[request.param])


@pytest.mark.parametrize("form", only(["weights", "hooks"], "weights"))
def test_it_hands_on_other_texts_and_leaves_the_pipeline_alone(attack: Attack, pipe: Any, form: str) -> None:
    before, trained = weights(pipe), [p.requires_grad for p in pipe.unet.parameters()]
    ready = prepared(attack, pipe)
    patch = erasure(pipe, form)
    assert patch is not None
    with patch.applied(pipe):
        edited = weights(pipe)
        found = candidates(attack, pipe, ready)
        assert same(weights(pipe), edited)
    assert 1 <= len(found) <= attack.budget().images - 1
    assert all(one.text and one.text != ASKS[0].text for one in found)
    assert len({one.text for one in found}) == len(found)
    assert all(not one.tokens and one.latents is None and one.patch is None for one in found)
    assert same(weights(pipe), before)
    assert [p.requires_grad for p in pipe.unet.parameters()] == trained
    assert not pipe.text_encoder.get_input_embeddings()._forward_hooks


def test_the_same_seed_finds_the_same_texts(attack: Attack, pipe: Any) -> None:
    first, second = (texts(attack, pipe, prepared(attack, pipe)) for _ in range(2))
    assert first == second


def test_hooks_and_weights_are_attacked_alike(attack: Attack, pipe: Any) -> None:
    ready, found = prepared(attack, pipe), []
    for form in ("weights", "hooks"):
        patch = erasure(pipe, form)
        assert patch is not None
        with patch.applied(pipe):
            found.append(texts(attack, pipe, ready))
    assert found[0] == found[1]


def test_it_spends_what_its_budget_says(attack: Attack, pipe: Any) -> None:
    ready = prepared(attack, pipe)
    outcome = attacked(attack, pipe, ready, Says(False))
    budget = attack.budget()
    assert (outcome.pre, outcome.post, outcome.image) == (False, False, None)
    assert (outcome.spent.gradients, outcome.spent.encodes) == (budget.gradients, budget.encodes)
    assert 1 < outcome.spent.images <= budget.images


def test_it_takes_prompts_longer_than_the_encoder_does(attack: Attack, pipe: Any) -> None:
    ready = prepared(attack, pipe, [*ASKS, LONG])
    outcome = attacked(attack, pipe, ready, Says(None), LONG)
    assert outcome.spent.images > 1
    assert not outcome.post


@pytest.mark.parametrize("name", ["ring_a_bell", "ring_a_bell attacked", "mma", "mma attacked"])
def test_its_texts_are_what_it_searched(name: str, pipe: Any) -> None:
    """Tokenised as the pipeline does it, a text is the tokens that the attack chose."""
    attack = get_attack(name.partition(" ")[0], **ATTACKS[name])
    for text in texts(attack, pipe, prepared(attack, pipe)):
        assert len(pipe.tokenizer(text, add_special_tokens=False).input_ids) == 4


@pytest.mark.parametrize("name", ["p4d", "ring_a_bell", "mma"])
def test_families_that_nobody_knows_how_to_call_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected a pipeline that can be trained and attacked"):
        prepared(get_attack(name), FAMILIES["hunyuandit"].build(tmp_path))


@pytest.mark.parametrize("family", only(FAMILIES, "flux2", "hunyuandit"))
def test_words_that_nobody_searched_for_are_drawn_by_every_family(family: str, tmp_path: Path) -> None:
    pipe = FAMILIES[family].build(tmp_path)
    attack = get_attack("random_prefix", k=2, images=4)
    found = texts(attack, pipe, prepared(attack, pipe))
    assert len(set(found)) == 3
    tokenizer = tokenizer_of(pipe, "text_encoder")
    for text in found:
        words = text.removesuffix(f" {ASKS[0].text}")
        assert len(tokenizer(words, add_special_tokens=False).input_ids) == 2
    options = {**FAMILIES[family].options, "output_type": "pil"}
    pipe.set_progress_bar_config(disable=True)

    def drawn(pipe: Any, arguments: Any, seeds: Any) -> list[Any]:
        return [pipe(**{**options, "prompt": text})[0][0] for text in arguments["prompt"]]

    assert attacked(attack, pipe, prepared(attack, pipe), Says(False), draw=drawn).spent == attack.budget()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("p4d", {"k": 0}, "expected k, stride"),
        ("p4d", {"variant": "both"}, "expected variant as free or insert"),
        ("p4d", {"steps": 10}, "expected a picture within the 10 steps, got one every 50"),
        ("p4d", {"lr": 0}, "lr above 0"),
        ("ring_a_bell", {"population": 1}, "a population of at least 2"),
        ("ring_a_bell", {"crossover": 1.5}, "expected chances from 0 to 1"),
        ("ring_a_bell", {"encoder": "none"}, "expected encoder as original or attacked"),
        ("mma", {"top": 0}, "top of at least 1"),
        ("mma", {"images": 1}, "images of at least 2"),
        ("words", {"templates": ("star",)}, "templates with one {} each"),
        ("words", {"templates": ()}, "synonyms or templates, got neither"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_attack(name, **options)


@pytest.mark.parametrize("name", ["ring_a_bell", "mma"])
def test_a_search_knows_the_encoder_it_uses(name: str, pipe: Any) -> None:
    """With `original` an edit of the text encoder changes nothing; with `attacked` the search sees it."""
    options: dict[str, Any] = ATTACKS[name]
    found: dict[str, list[list[str]]] = {}
    for encoder in ("original", "attacked"):
        attack = get_attack(name, **options | {"encoder": encoder, "images": 4})
        assert attack.encoder == encoder
        ready = prepared(attack, pipe)
        assert bool(ready.texts) == (encoder == "original")
        before = texts(attack, pipe, ready)
        table = pipe.text_encoder.get_input_embeddings().weight
        kept = table.data.clone()
        table.data = kept[torch.randperm(len(kept), generator=seeded())]
        found[encoder] = [before, texts(attack, pipe, ready)]
        table.data = kept
    assert found["original"][0] == found["original"][1]
    assert found["attacked"][0] != found["attacked"][1]


@pytest.mark.parametrize("name", ["ring_a_bell", "mma"])
@pytest.mark.parametrize("encoder", ["original", "attacked"])
def test_more_tokens_than_the_encoder_reads_are_refused(name: str, encoder: str, pipe: Any) -> None:
    with pytest.raises(ValueError, match="expected k of at most 14, which is what the text encoder reads, got 15"):
        prepared(get_attack(name, k=15, encoder=encoder), pipe)
