"""Soft tokens in several text encoders: read like words by those that are attacked, and by no other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.attacking import seeded
from support.families.all import FAMILIES
from support.selection import rows
from support.tiny import WORDS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from erasers.diffusion.adaptors.table import adaptor_of, encoders_of
from erasers.diffusion.attacked import attacked_encoders, behind_words, forms, vocabulary, widths
from erasers.diffusion.soft import SoftPrompt
from erasers.diffusion.tokens import token_table, tokenizer_of

BOTH = ("text_encoder", "text_encoder_2")
LONE = ("chroma", "auraflow", "pixart", "sana", "wan", "flux2", "qwenimage", "lumina2", "zimage", "cogview4")
"""Families with an encoder that is not of CLIP: T5, UMT5, Gemma, Mistral, Qwen, GLM."""
WHOLE = [
    ("sd2", ("text_encoder",)),
    ("sdxl", BOTH),
    ("sd3", (*BOTH, "text_encoder_3")),
    ("flux", BOTH),
    *((name, ("text_encoder",)) for name in LONE),
]
"""Families with all of their encoders."""
SHOWN = ("sdxl", "sd3", "flux", "qwenimage", "lumina2")
PARTS = [("sdxl", ("text_encoder_2",)), ("sd3", BOTH), ("flux", ("text_encoder",)), ("flux", ("text_encoder_2",))]


def built(name: str, folder: Path) -> Any:
    pipe = FAMILIES[name].build(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def soft_words(pipe: Any, encoders: Sequence[str], words: str) -> torch.Tensor:
    """Soft tokens that are words."""
    tables = [(token_table(pipe, name), tokenizer_of(pipe, name)) for name in encoders]
    return torch.cat(
        [
            table[tokenizer(words, add_special_tokens=False).input_ids[: len(words.split())]]
            for table, tokenizer in tables
        ],
        dim=-1,
    )


def looked_up(pipe: Any, name: str, read: Any) -> list[torch.Tensor]:
    """What an encoder looks up for the texts that `read` gives it, behind all hooks."""
    met: list[torch.Tensor] = []
    encoder = getattr(pipe, name)
    layers = [module for module in encoder.modules() if type(module).__name__ in ("CLIPEncoderLayer", "T5Block")]
    handle = layers[0].register_forward_pre_hook(lambda module, args, kwargs: met.append(args[0]), with_kwargs=True)
    with torch.no_grad():
        read()
    handle.remove()
    return met


@pytest.mark.parametrize(("family", "encoders"), rows(WHOLE, lambda family, encoders: family in SHOWN))
def test_soft_tokens_that_are_words_are_read_as_the_words(family: str, encoders: Any, tmp_path: Path) -> None:
    pipe = built(family, tmp_path)
    prompt = SoftPrompt(pipe, "a <one> of <two> art", {"<one>": 2, "<two>": 1}, encoders=encoders)
    tokens = {"<one>": soft_words(pipe, encoders, "red star"), "<two>": soft_words(pipe, encoders, "moon")}
    with torch.no_grad():
        soft = prompt.condition(tokens)
        hard = adaptor_of(pipe).encode(pipe, ["a red star of moon art"])
        carriers = adaptor_of(pipe).encode(pipe, [prompt.text])
    assert torch.equal(soft.states, hard.states)
    assert not torch.equal(soft.states, carriers.states)
    if hard.pooled is not None:
        assert torch.equal(torch.as_tensor(soft.pooled), hard.pooled)
        assert not torch.equal(torch.as_tensor(soft.pooled), torch.as_tensor(carriers.pooled))


@pytest.mark.parametrize(("family", "encoders"), PARTS)
def test_only_attacked_encoders_read_them(family: str, encoders: Any, tmp_path: Path) -> None:
    pipe = built(family, tmp_path)
    prompt = SoftPrompt(pipe, "a <v>", {"<v>": 2}, encoders=encoders)
    tokens = {"<v>": soft_words(pipe, encoders, "red star")}
    for name in encoders_of(pipe):
        plain = looked_up(pipe, name, lambda: adaptor_of(pipe).encode(pipe, [prompt.text]))
        hard = looked_up(pipe, name, lambda: adaptor_of(pipe).encode(pipe, ["a red star"]))
        soft = looked_up(pipe, name, lambda: prompt.condition(tokens))
        assert torch.equal(soft[0], (hard if name in encoders else plain)[0]), name
        assert not torch.equal(plain[0], hard[0]), name


@pytest.mark.parametrize(("family", "encoders"), rows(WHOLE, lambda family, encoders: family in SHOWN))
def test_gradients_reach_the_part_of_every_attacked_encoder(family: str, encoders: Any, tmp_path: Path) -> None:
    pipe = built(family, tmp_path)
    prompt = SoftPrompt(pipe, "a <v> art", {"<v>": 2}, encoders=encoders)
    vectors = soft_words(pipe, encoders, "red star").requires_grad_()
    condition = prompt.condition({"<v>": vectors})
    pooled = 0.0 if condition.pooled is None else condition.pooled.square().sum()
    (slope,) = torch.autograd.grad(condition.states.square().sum() + pooled, [vectors])
    for own in slope.split(widths(pipe, encoders), dim=-1):
        assert own.abs().amax(dim=1).min() > 0


@pytest.mark.parametrize(("family", "encoders"), rows(WHOLE[:4], lambda family, encoders: family == "sd3"))
def test_the_pipeline_draws_them(family: str, encoders: Any, tmp_path: Path) -> None:
    pipe, options = built(family, tmp_path), {"num_inference_steps": 2, "output_type": "latent", "guidance_scale": 4.0}
    prompt = SoftPrompt(pipe, "a <v>", {"<v>": 2}, encoders=encoders)
    with prompt.placed({"<v>": soft_words(pipe, encoders, "red star")}) as read:
        soft = pipe([prompt.text, "a moon"], generator=[seeded(), seeded(1)], **options).images
    assert read == dict.fromkeys(encoders, 1)
    hard = pipe(["a red star", "a moon"], generator=[seeded(), seeded(1)], **options).images
    assert torch.equal(soft, hard)


def test_rows_of_their_own_are_rows(tmp_path: Path) -> None:
    pipe = built("sdxl", tmp_path)
    prompt = SoftPrompt(pipe, "a <v>", {"<v>": 2})
    vectors = torch.stack([soft_words(pipe, BOTH, words) for words in ("red star", "blue moon", "van gogh")])
    with torch.no_grad():
        together = prompt.condition({"<v>": vectors})
        alone = [prompt.condition({"<v>": row}) for row in vectors]
    torch.testing.assert_close(together.states, torch.cat([each.states for each in alone]), atol=1e-6, rtol=1e-5)
    pooled = torch.cat([torch.as_tensor(each.pooled) for each in alone])
    torch.testing.assert_close(torch.as_tensor(together.pooled), pooled, atol=1e-6, rtol=1e-5)


def test_all_clip_encoders_are_attacked_or_else_the_one_there_is(tmp_path: Path) -> None:
    wanted = {"sd1": BOTH[:1], "sdxl": BOTH, "sd3": BOTH, "flux": BOTH[:1]}
    pipes = {name: built(name, tmp_path / name) for name in wanted}
    assert {name: attacked_encoders(pipe) for name, pipe in pipes.items()} == wanted
    assert attacked_encoders(pipes["flux"], ["text_encoder_2"]) == ("text_encoder_2",)
    assert attacked_encoders(pipes["flux"], BOTH[::-1]) == BOTH
    pipes["sd3"].text_encoder = pipes["sd3"].text_encoder_2 = None
    assert attacked_encoders(pipes["sd3"]) == ("text_encoder_3",)
    with pytest.raises(ValueError, match="expected encoders among text_encoder, text_encoder_2, got text_encoder_3"):
        attacked_encoders(pipes["flux"], ["text_encoder_3"])


def test_words_are_one_token_of_every_encoder(tmp_path: Path) -> None:
    pipe = built("flux", tmp_path)
    words = vocabulary(pipe, BOTH)
    texts = [words.text(pipe, torch.tensor([row])) for row in range(len(words))]
    assert {"star", "moon", "gogh"} <= set(texts)
    assert "q" not in texts  # T5 does not know the letter
    clip = vocabulary(pipe, BOTH[:1])
    assert "q" in [clip.text(pipe, torch.tensor([row])) for row in range(len(clip))]
    for name in BOTH:
        typed = tokenizer_of(pipe, name)(texts, add_special_tokens=False).input_ids
        assert [ids[0] for ids in typed] == words.ids[name].tolist()
    assert words.table(pipe).shape == (len(words), sum(widths(pipe, BOTH)))
    star = texts.index("star")
    assert torch.equal(words.table(pipe)[star], soft_words(pipe, BOTH, "star")[0])


def test_embeddings_of_other_encoders_are_refused(tmp_path: Path) -> None:
    prompt = SoftPrompt(built("sdxl", tmp_path), "a <v>", {"<v>": 1})
    with pytest.raises(ValueError, match="24 of text_encoder \\+ 16 of text_encoder_2 values, got 24"):
        prompt.condition({"<v>": torch.zeros(1, 24)})


def test_a_prompt_that_one_encoder_cuts_is_refused(tmp_path: Path) -> None:
    pipe = built("flux", tmp_path)
    text = "a red star " * 9 + "<v>"
    assert SoftPrompt(pipe, text, {"<v>": 2}, encoders=["text_encoder_2"]).text
    with pytest.raises(ValueError, match="what text_encoder reads of it"):
        SoftPrompt(pipe, text, {"<v>": 2}, encoders=BOTH)


def test_what_the_pipeline_cuts_is_refused_when_it_is_read(tmp_path: Path) -> None:
    """The tokenizer of T5 has no limit; the pipeline of SD3 cuts at 256."""
    pipe = built("sd3", tmp_path)
    prompt = SoftPrompt(pipe, "a " * 300 + "<v>", {"<v>": 2}, encoders=["text_encoder_3"])
    with pytest.raises(ValueError, match="what text_encoder_3 reads of it"):
        prompt.condition({"<v>": torch.zeros(2, 64)})


def byte_level() -> Any:
    """A tokenizer like those of Qwen and Mistral: a word behind another one has its space in the token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    corpus = ["star moon red star moon", "moon red star", "red star moon tulip"] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=core)


def test_words_of_byte_level_tokenizers_are_those_behind_another_word() -> None:
    tokenizer = byte_level()
    first, behind = (tokenizer.convert_tokens_to_ids(token) for token in ("star", "\u0120star"))
    assert behind_words(tokenizer, ["star", "moon star", "tulips"]) == [behind, None, None]
    assert forms(tokenizer, "star") == {first, behind}
    assert forms(tokenizer, "tulips") == set()
    words = vocabulary(SimpleNamespace(tokenizer=tokenizer), ["text_encoder"])
    assert behind in words.ids["text_encoder"]
    assert first not in words.ids["text_encoder"]


def test_soft_tokens_stand_in_both_forms_of_their_word(tmp_path: Path) -> None:
    """At the beginning of the prompt the first of them is another token than the second."""
    pipe = built("chroma", tmp_path)
    pipe.tokenizer, prompts = byte_level(), []
    pipe.tokenizer.add_special_tokens({"pad_token": "<pad>"})
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)
    for text in ("<v> moon", "moon <v>"):
        prompts.append(SoftPrompt(pipe, text, {"<v>": 2}))
        condition = prompts[-1].condition({"<v>": torch.zeros(2, 64)})
        other = prompts[-1].condition({"<v>": torch.ones(2, 64)})
        assert not torch.equal(condition.states, other.states)
    assert len(set(pipe.tokenizer(prompts[0].text).input_ids[:2])) == 2


def test_words_of_the_instructions_around_a_prompt_are_left_alone(tmp_path: Path) -> None:
    """The tokenizer lists those of Qwen-Image before the only word that is free."""
    pipe = built("qwenimage", tmp_path)
    pipe.tokenizer.add_tokens(["tulip"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)
    prompt = SoftPrompt(pipe, f"{' '.join(WORDS)} <v>", {"<v>": 1})
    assert prompt.text == f"{' '.join(WORDS)} tulip"
    tokens = {"<v>": soft_words(pipe, prompt.encoders, "star")}
    with torch.no_grad():
        soft, hard = prompt.condition(tokens), adaptor_of(pipe).encode(pipe, [f"{' '.join(WORDS)} star"])
    assert torch.equal(soft.states, hard.states)
