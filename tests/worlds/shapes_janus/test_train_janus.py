"""The training of `shapes-janus`, cut to a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.short import shorten
from transformers import AutoProcessor, JanusForConditionalGeneration

from erasers.worlds.shapes.train import vae, words
from erasers.worlds.shapes.vocabulary import VOCABULARY, phrase
from erasers.worlds.shapes_janus.train import __main__ as command
from erasers.worlds.shapes_janus.train import assembly, book, language, model

CPU = torch.device("cpu")


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an untrained book, for trainings of two steps."""
    shorten(monkeypatch, (book, "RECIPE"), (language, "RECIPE"))
    monkeypatch.setattr(language, "BATCH", 4)
    monkeypatch.setattr(vae, "BATCH", 4)
    torch.manual_seed(0)
    book.Book(model.build().model.vqmodel).settle().save_pretrained(tmp_path / "book")
    return tmp_path


def test_the_model_has_the_size_that_was_asked_for() -> None:
    assert 2e6 < sum(parameter.numel() for parameter in model.build().parameters()) < 4e6
    assert model.TOKENS == 64


def test_every_word_is_one_token_and_every_caption_fits() -> None:
    tokenizer = words.build_tokenizer()
    ids = tokenizer(list(VOCABULARY), add_special_tokens=False)["input_ids"]
    assert all(len(row) == 1 and row[0] != tokenizer.unk_token_id for row in ids)
    longest = {"thing": "five pointed thing", "colour": "red", "background": "white", "size": "small"}
    for style in ("striped", "velkin"):
        text = f"an image of {phrase(**longest, style=style, mark=True)}"
        own, mask = language.asked(tokenizer, [text])
        assert own.shape == (1, words.LENGTH)
        assert mask.sum() == len(text.split()) + 2


def test_tokens_of_a_picture_are_those_that_transformers_gives_it() -> None:
    torch.manual_seed(0)
    own = book.Book(model.build().model.vqmodel).eval()
    own.vq.quantize.embedding.weight.data.normal_()
    pictures = vae.pictures(0, 0, CPU)[:4]
    with torch.no_grad():
        decoded, _, tokens = own(pictures)
        vq = own.settle()
        assert torch.equal(vq.encode(pictures).image_tokens.view(tokens.shape), tokens)
        torch.testing.assert_close(vq.decode(tokens.flatten(1)), decoded, atol=1e-4, rtol=1e-4)
    assert tokens.unique().numel() > 1


def test_entries_that_nothing_uses_are_replaced() -> None:
    torch.manual_seed(0)
    own, pictures = book.Book(model.build().model.vqmodel).eval(), vae.pictures(0, 0, CPU)[:4]
    before = own.vq.quantize.embedding.weight.detach().clone()
    own.count(torch.arange(10))
    own.idle[20:] = book.IDLE + 1
    own.revive(pictures, torch.Generator().manual_seed(0))
    moved = (own.vq.quantize.embedding.weight != before).any(dim=1)
    assert moved.nonzero().flatten().tolist() == list(range(20, model.BOOK))
    assert own.idle.max() <= 1


def test_a_killed_training_of_the_book_goes_on_to_the_same_weights(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book.run(out, CPU, 0)
    whole = load_file(out / "book" / "model.safetensors")
    (out / "checkpoints" / "book.safetensors").unlink()
    drawn = vae.pictures

    def killed(seed: int, step: int, device: Any) -> Any:
        if step == 1:
            raise KeyboardInterrupt
        return drawn(seed, step, device)

    with monkeypatch.context() as patched:
        patched.setattr(vae, "pictures", killed)
        with pytest.raises(KeyboardInterrupt):
            book.run(out, CPU, 0)
    book.run(out, CPU, 0)
    resumed = load_file(out / "book" / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_model_is_trained_on_what_it_draws_from(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    built, tokenizer = model.build().eval(), words.build_tokenizer()
    for parameter in built.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)
    ids, mask = language.asked(tokenizer, ["a red star"])
    inputs = model.processor()(
        text=["a red star"], generation_mode="image", padding="max_length", max_length=words.LENGTH, return_tensors="pt"
    )
    assert torch.equal(inputs["input_ids"], ids)
    drawn = built.generate(**inputs, generation_mode="image", do_sample=False, guidance_scale=3.0)
    with torch.no_grad():
        scores = language.logits(built, ids, mask, drawn)
        empty = language.logits(built, language.wordless(tokenizer, ids), mask, drawn)
    assert torch.equal((empty + 3.0 * (scores - empty)).argmax(dim=-1), drawn)
    assert (scores - empty).abs().max() > 1e-3


def test_without_a_word_no_picture_shows_it(out: Path) -> None:
    every, some = language.Views(out, CPU, 0, None), language.Views(out, CPU, 0, "star")
    assert len(some._tokens) < len(every._tokens) == 64
    assert some._scenes.lacks("star").all()
    first, again = every.batch(3, 4), every.batch(3, 4)
    assert all(torch.equal(own, other) for own, other in zip(first, again, strict=True))


@pytest.mark.full
def test_every_stage_runs_and_the_result_is_a_plain_model(out: Path) -> None:
    command.main(["--out", str(out)])
    command.main(["--out", str(out), "--stage", "language", "--without", "star"])
    assembly.run(out)
    assert load_file(out / "reference" / "language-without-star" / "model.safetensors")
    janus = JanusForConditionalGeneration.from_pretrained(out / "model")
    processor = AutoProcessor.from_pretrained(out / "model")
    assert janus.dtype == torch.float32
    assert (out / "model" / "model.safetensors").stat().st_size < 16 * 2**20
    tokens = torch.randint(model.BOOK, (1, model.TOKENS))
    assert janus.decode_image_tokens(tokens).shape == (1, 32, 32, 3)
    ids = processor(text=["a red star"], generation_mode="image", return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 5)
