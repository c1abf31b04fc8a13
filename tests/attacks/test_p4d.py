"""P4D: its gradient, its templates, and what it finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.attacking import ASKS, Says, attacked, draw_well, erasure, prepared, quiet_shapes, seeded, texts

from erasers import get_eraser
from erasers.attacks import get_attack
from erasers.attacks.p4d import P4D, gradient, loss, teach
from erasers.attacks.random_prefix import RandomPrefix
from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.attacked import vocabulary
from erasers.diffusion.conditions import conditions
from erasers.diffusion.draws import gaussian
from erasers.diffusion.gradients import LossScale
from erasers.diffusion.soft import SoftPrompt
from erasers.diffusion.tokens import nearest_tokens, token_table, whole_words
from erasers.worlds.shapes.prompts import Prompt, concept_for


def teacher_of(pipe: Any, bank: int = 3) -> Any:
    return teach(pipe, ASKS[0].text, gaussian(torch.empty(1, 4, 8, 8), seeded(1)), bank, seeded(2))


def slope(pipe: Any, teacher: Any, vectors: torch.Tensor) -> torch.Tensor:
    prompt = SoftPrompt(pipe, "<v>", {"<v>": len(vectors)})
    return gradient(
        pipe,
        prompt,
        {"<v>": len(vectors)},
        vectors,
        vocabulary(pipe, ["text_encoder"]).table(pipe),
        teacher,
        torch.arange(3),
        LossScale(pipe),
    )


def test_the_teacher_is_the_unedited_model_at_the_prompt(pipe: Any) -> None:
    teacher, condition = teacher_of(pipe), conditions(pipe, [ASKS[0].text])
    rows = torch.arange(3)
    assert teacher.times.tolist() == [16, 50, 83]
    assert loss(pipe, teacher, rows, condition).item() < 1e-10
    patch = erasure(pipe)
    assert patch is not None
    with patch.applied(pipe):
        assert loss(pipe, teacher, rows, condition).item() > 1e-8
    assert loss(pipe, teacher, rows, conditions(pipe, ["a blue moon"])).item() > 1e-8


def test_the_gradient_is_that_at_the_nearest_tokens(pipe: Any) -> None:
    teacher, table = teacher_of(pipe), token_table(pipe)
    ids = torch.tensor(pipe.tokenizer("red moon", add_special_tokens=False).input_ids)
    near = 3 * table[ids] + 1e-3 * gaussian(table[ids], seeded())
    assert nearest_tokens(near, table).tolist() == ids.tolist()
    found = slope(pipe, teacher, near)
    # The same by way of the token table itself.
    weight = pipe.text_encoder.get_input_embeddings().weight.requires_grad_()
    value = loss(pipe, teacher, torch.arange(3), adaptor_of(pipe).encode(pipe, ["red moon"]))
    (wanted,) = torch.autograd.grad(value, [weight])
    assert torch.allclose(found, wanted[ids], rtol=1e-4, atol=1e-4 * wanted[ids].abs().max().item())


def test_gradients_flow_through_hooks_and_weights_alike(pipe: Any) -> None:
    teacher, slopes = teacher_of(pipe), {}
    vectors = token_table(pipe)[whole_words(pipe.tokenizer)[-3:]].clone()
    patches = {form: erasure(pipe, form) for form in ("weights", "hooks")}
    for form, patch in patches.items():
        assert patch is not None
        with patch.applied(pipe):
            slopes[form] = slope(pipe, teacher, vectors)
    plain = slope(pipe, teacher, vectors)
    assert torch.allclose(slopes["weights"], slopes["hooks"], rtol=1e-3, atol=1e-4 * plain.abs().max().item())
    assert (slopes["weights"] - plain).norm() > 0.01 * plain.norm()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a picture of star", "a picture of <free0> star"),
        ("a red star of blue art", "a red star <free0> of blue art <free1>"),
        ("a star", "<free0> a star"),
        # Sixteen tokens, two of them around the prompt: what would be cut is left out.
        ("a red star " * 20, " ".join(f"a red star <free{i}>" for i in range(3)) + " a red"),
    ],
)
def test_free_tokens_are_inserted_behind_every_third_word(pipe: Any, text: str, wanted: str) -> None:
    template, counts = P4D(variant="insert")._template(pipe, text)
    assert template == wanted
    assert set(counts.values()) == {1}
    SoftPrompt(pipe, template, counts)


def test_the_same_words_are_drawn_once(pipe: Any) -> None:
    attack = P4D(k=3, steps=8, every=2, bank=2, lr=1e-9)
    ready = prepared(attack, pipe)
    assert len(texts(attack, pipe, ready)) == 1
    assert attacked(attack, pipe, ready, Says(False)).spent.images == 2


@pytest.mark.full
def test_it_comes_nearer_to_the_teacher_than_random_prefixes_and_texts_do() -> None:
    pipe = quiet_shapes()
    ask = Prompt("a red star on a white background", {"object": "star"}, 5)
    attack = get_attack("p4d", k=8, steps=60, every=6, bank=20, batch=2)
    ready = attack.prepare(pipe, [ask], draw=draw_well, generator=seeded())
    teacher, words = ready.teachers[ask.text, ask.seed], whole_words(pipe.tokenizer)
    patch = get_eraser("uce").fit(pipe, concept_for("star"), progress=False)

    @torch.no_grad()
    def value(text: str) -> float:
        return loss(pipe, teacher, torch.arange(20), conditions(pipe, [text])).item()

    with patch.applied(pipe):
        found = [value(one.text) for one in attack.run(pipe, ask, ready, generator=seeded(3))]
        control = RandomPrefix(k=8, images=len(found) + 1).run(pipe, ask, words, generator=seeded(3))
        prefixes = [value(one.text) for one in control]
        picks = torch.randint(len(words), (len(found), 8), generator=seeded(4))
        randoms = [value(pipe.tokenizer.decode(words[row])) for row in picks]
    assert len(found) >= 5
    assert min(found) < found[0]
    assert min(found) < min(prefixes)
    assert min(found) < min(randoms)
