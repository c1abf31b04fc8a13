"""EAR on a tiny random Janus."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.language import make_janus
from support.tiny import same, weights
from torch.nn import functional

from erasers import Concept, ModelPipeline, Patch, get_eraser
from erasers.methods.ear import eraser as ear
from erasers.methods.ear import sequences
from erasers.methods.ear.sequences import Asked, ask, ask_raw, draw_tokens, states_of

STAR = Concept("star", anchor="circle")
PROMPTS = ["a star", "a picture of a red circle"]
FEW: dict[str, Any] = {"pairs": 2, "window": 4, "lr": 1e-3, "layers": 2, "threshold": 0.0}


@pytest.fixture(scope="module")
def janus() -> ModelPipeline:
    """Three layers, pictures of 16 tokens."""
    return make_janus()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fit(janus: ModelPipeline, **options: Any) -> Patch:
    return get_eraser("ear", **FEW | options).fit(janus, STAR, progress=False)


def test_the_target_lies_beyond_the_anchor() -> None:
    unsafe, safe, other = torch.randn(3, 2, 8, generator=seeded())
    torch.testing.assert_close(ear.target(unsafe, safe, other, eta=1.5), safe - 1.5 * (unsafe - other))
    assert torch.equal(ear.target(unsafe, safe, safe, eta=0.0), safe)


@pytest.mark.parametrize(("count", "size", "sizes"), [(16, 4, [4] * 4), (576, 100, [100] * 5 + [76]), (3, 5, [3])])
def test_windows_hold_every_token_once(count: int, size: int, sizes: list[int]) -> None:
    slices = ear.windows(count, size)
    assert [window.stop - window.start for window in slices] == sizes
    assert [number for window in slices for number in range(count)[window]] == list(range(count))
    # The official code drops a rest that fills no window.
    assert ear.windows(count, size, whole=True) == (slices[:-1] if sizes[-1] < size and len(sizes) > 1 else slices)


def test_the_loss_of_a_token_is_that_of_its_states() -> None:
    states, goals = [torch.ones(2, 3), torch.zeros(1, 4, 3)], [torch.zeros(2, 3), 2 * torch.ones(1, 4, 3)]
    assert ear.token_losses(states, goals).tolist() == [1.0, 4.0]


def test_tokens_are_drawn_as_the_model_draws_them(janus: ModelPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "multinomial", lambda shares, count, generator=None: shares.argmax(1, keepdim=True))
    for asked, prompt in zip(ask(janus, PROMPTS), PROMPTS, strict=True):
        inputs = janus.processor(text=[prompt], generation_mode="image", return_tensors="pt")
        expected = janus.model.generate(**inputs, generation_mode="image", do_sample=False, guidance_scale=5.0)
        assert torch.equal(draw_tokens(janus.model, asked, 5.0, seeded()), expected)
        assert expected.unique().numel() > 1


def test_with_the_cache_tokens_see_their_prompt_and_without_it_one_token(janus: ModelPipeline) -> None:
    asked = ask(janus, PROMPTS)[1]
    tokens = draw_tokens(janus.model, asked, 2.0, seeded())
    everything = slice(0, 16)
    cached = recorded(janus, asked, tokens)
    forced = torch.stack(states_of(janus.model, asked, tokens, everything), dim=1)
    torch.testing.assert_close(forced, cached, atol=1e-4, rtol=1e-4)
    assert (forced[0] - forced[1]).abs().amax(dim=1).min() > 1e-2
    first, *others = states_of(janus.model, asked, tokens, everything, "last_token")
    assert first.shape == asked.states.shape
    torch.testing.assert_close(first[:, -1], forced[:, 0], atol=1e-4, rtol=1e-4)
    # The same token gives the same state, wherever it stands and whatever was asked for.
    alone = {int(token): state for token, state in zip(tokens[0, :-1], others, strict=True)}
    for token, state in zip(tokens[0, :-1], others, strict=True):
        torch.testing.assert_close(state, alone[int(token)])
    assert (torch.cat(others)[:, 0] - forced[0, 1:]).abs().max() > 0.1


def recorded(janus: ModelPipeline, asked: Asked, tokens: torch.Tensor) -> torch.Tensor:
    """States `[2, T, d]` that the tokens are drawn from, one by one with a cache."""
    states, step, cache = [], asked.states, None
    with torch.no_grad():
        for token in tokens[0]:
            output = janus.model.model.language_model(inputs_embeds=step, past_key_values=cache, use_cache=True)
            states.append(output.last_hidden_state[:, -1])
            step, cache = (
                janus.model.prepare_embeddings_for_image_generation(token.expand(2, 1)),
                output.past_key_values,
            )
    return torch.stack(states, dim=1)


@pytest.mark.parametrize("window", [slice(0, 4), slice(4, 8), slice(12, 16)])
def test_states_of_a_window_are_those_of_the_whole_picture(janus: ModelPipeline, window: slice) -> None:
    asked = ask(janus, PROMPTS)[0]
    tokens = torch.randint(24, (1, 16), generator=seeded())
    for context in ("full", "last_token"):
        whole = states_of(janus.model, asked, tokens, slice(0, 16), context)[window]
        for state, expected in zip(states_of(janus.model, asked, tokens, window, context), whole, strict=True):
            torch.testing.assert_close(state, expected, atol=1e-5, rtol=1e-5)


def test_prompts_are_read_as_pictures_are_asked_for_and_raw_as_the_official_code_does(janus: ModelPipeline) -> None:
    short, long = ask(janus, PROMPTS)
    assert short.states.shape == long.states.shape
    assert short.mask.sum(dim=1).tolist() == [4, 4]  # start, a, star, start of the picture
    raw, cut = ask_raw(janus, PROMPTS)
    assert raw.states.shape == cut.states.shape == (2, 3, 32)
    assert torch.equal(cut.states[0], long.states[0, :3])
    padded = ask_raw(janus, PROMPTS[::-1])[1]
    assert padded.states.shape[1] == 7
    assert padded.mask.all()


def test_a_chat_template_is_used_where_there_is_one(janus: ModelPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ask(janus, ["a star"])[0]
    monkeypatch.setattr(
        janus.processor,
        "chat_template",
        "art {{ messages[0].content[0].text }}{% if add_generation_prompt %} of{% endif %}",
    )
    asked = ask(janus, ["a star"])[0]
    assert asked.states.shape[1] == plain.states.shape[1] + 2


@pytest.mark.parametrize("options", [{}, {"context": "last_token"}, {"rank": 2}])
def test_fit_trains_the_first_layers_attention_and_leaves_the_model_as_it_is(
    janus: ModelPipeline, options: dict[str, Any], tmp_path: Path
) -> None:
    before = weights(janus)
    patch = fit(janus, **options)
    assert same(before, weights(janus))
    assert all(not parameter.requires_grad or parameter.grad is None for parameter in janus.model.parameters())
    with patch.applied(janus):
        after = weights(janus)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(patch.parameters)
    assert len(moved) == 8
    assert all(
        re.fullmatch(r"model\.model\.language_model\.layers\.[01]\.self_attn\.[qkvo]_proj\.weight", n) for n in moved
    )
    assert same(before, weights(janus))
    assert fit(janus, **options).digest == patch.digest
    patch.save(tmp_path / "patch.safetensors")
    assert Patch.load(tmp_path / "patch.safetensors").digest == patch.digest


def test_training_moves_states_towards_the_target(janus: ModelPipeline) -> None:
    asked, anchor = ask(janus, ["a star", "a circle"])
    tokens = draw_tokens(janus.model, asked, 5.0, seeded(7))
    everything = slice(0, 16)
    states = torch.stack(states_of(janus.model, asked, tokens, everything))
    goal = ear.target(states, torch.stack(states_of(janus.model, anchor, tokens, everything)), states, eta=0.0)
    goal -= states - goal
    patch = fit(janus, pairs=12, templates=("a {}",), window=8, lr=3e-3)
    with patch.applied(janus):
        learned = torch.stack(states_of(janus.model, asked, tokens, everything))
    assert functional.mse_loss(learned, goal) < 0.8 * functional.mse_loss(states, goal)


def test_a_window_up_to_the_threshold_changes_nothing(janus: ModelPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    steps: list[int] = []
    learn, step = ear.EAR._learn, torch.optim.Adam.step

    def told(self: Any, *arguments: Any) -> list[float]:
        seen.extend(own := learn(self, *arguments))
        return own

    def counted(self: Any, *arguments: Any) -> Any:
        steps.append(len(steps))
        return step(self, *arguments)

    monkeypatch.setattr(ear.EAR, "_learn", told)
    monkeypatch.setattr(torch.optim.Adam, "step", counted)
    fit(janus, pairs=1, window=2)
    between = sum(sorted(seen)[3:5]) / 2
    seen.clear()
    steps.clear()
    fit(janus, pairs=1, window=2, threshold=between)
    assert len(steps) == sum(loss > between for loss in seen)
    assert 0 < len(steps) < len(seen) == 8
    with pytest.raises(ValueError, match=r"expected windows with a loss above .*lower threshold"):
        fit(janus, pairs=1, window=2, threshold=2 * max(seen))


def test_a_window_is_one_step_of_the_optimizer(janus: ModelPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    step = torch.optim.Adam.step

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", counted)
    fit(janus, window=6)
    assert steps == 2 * 3
    fit(janus, window=6, context="last_token")
    assert steps == 2 * 3 + 2 * 2


def test_the_official_context_draws_three_pictures_for_a_pair(
    janus: ModelPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts: list[str] = []
    draw = sequences.draw_tokens

    def told(model: Any, asked: Any, guidance: float, generator: Any, context: str) -> Any:
        contexts.append(context)
        return draw(model, asked, guidance, generator, context)

    monkeypatch.setattr(ear, "draw_tokens", told)
    fit(janus)
    fit(janus, context="last_token")
    assert contexts == ["full"] * 2 + ["last_token"] * 6
    assert get_eraser("ear-official").context == "last_token"


def test_pairs_come_in_turns_until_there_are_enough() -> None:
    eraser = get_eraser("ear", pairs=5, templates=("{}", "a {}"))
    pairs = eraser.prompts([STAR], seeded())
    assert len(pairs) == 5
    assert set(pairs) == {("star", "circle"), ("a star", "a circle")}
    assert set(pairs[:2]) == set(pairs[2:4]) == set(pairs)


@pytest.mark.parametrize(
    "option",
    [{"pairs": 0}, {"eta": -1.0}, {"window": 0}, {"layers": 0}, {"lr": 0.0}, {"rank": -1}, {"context": "none"}],
)
def test_bad_options_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        get_eraser("ear", **option)


def test_half_precision_trains_too() -> None:
    janus = make_janus(side=2, layers=1)
    janus.model.bfloat16()
    patch = fit(janus, pairs=1)
    assert {tensor.dtype for tensor in patch.tensors.values()} == {torch.float16}
    with patch.applied(janus):
        assert {weight.dtype for weight in weights(janus).values()} == {torch.bfloat16}
