"""The training of `shapes-janus`, cut to a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.short import shorten
from transformers import AutoProcessor, JanusForConditionalGeneration

from erasers import load_model
from erasers.worlds.shapes.train import words
from erasers.worlds.shapes.vocabulary import VOCABULARY, held_out, phrase
from erasers.worlds.shapes_janus.train import __main__ as command
from erasers.worlds.shapes_janus.train import assembly, book, language, model, plain

CPU = torch.device("cpu")


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an untrained book, for trainings of two steps."""
    shorten(monkeypatch, (book, "JOINT"), (book, "DECODER"), (language, "RECIPE"))
    monkeypatch.setattr(language, "BATCH", 4)
    monkeypatch.setattr(language, "PICTURES", 64)
    monkeypatch.setattr(book, "BATCH", 4)
    torch.manual_seed(0)
    for name in ("book", "decoder"):
        book.Book(model.build().model.vqmodel).vq.save_pretrained(tmp_path / name)
    return tmp_path


def test_the_model_has_the_size_that_was_asked_for() -> None:
    assert 1e6 < sum(parameter.numel() for parameter in model.build().parameters()) < 4e6
    assert model.TOKENS == 64


def test_every_word_is_one_token_and_every_caption_fits() -> None:
    tokenizer = words.build_tokenizer()
    ids = tokenizer(list(VOCABULARY), add_special_tokens=False)["input_ids"]
    assert all(len(row) == 1 and row[0] != tokenizer.unk_token_id for row in ids)
    longest = {"thing": "five pointed thing", "colour": "red", "background": "white", "size": "small"}
    for style in ("striped", "velkin"):
        text = f"an image of {phrase(**longest, style=style, mark=True)}"
        own, mask = language.asked(tokenizer, [text])
        assert own.shape[1] <= words.LENGTH
        assert mask.sum() == len(text.split()) + 2


def test_tokens_of_a_picture_are_those_that_transformers_gives_it() -> None:
    torch.manual_seed(0)
    own, pictures = book.Book(model.build().model.vqmodel).eval(), book.drawn(0, 0, CPU)
    with torch.no_grad():
        directions, tokens = own.encode(pictures), own.vq.encode(pictures).image_tokens.view(len(pictures), -1)
        bits = (directions > 0).flatten(2).movedim(1, -1).long()
        assert torch.equal((bits << torch.arange(model.BITS)).sum(dim=-1), tokens)
        decoded = own(pictures, torch.ones_like(directions, dtype=torch.bool))
        torch.testing.assert_close(own.vq.decode(tokens), decoded, atol=1e-4, rtol=1e-4)
        soft = own(pictures, torch.zeros_like(directions, dtype=torch.bool))
    assert tokens.unique().numel() > 1
    assert (soft - decoded).abs().max() > 1e-3


def test_the_book_has_each_vector_of_signs_once() -> None:
    entries = book.entries()
    assert len(entries.unique(dim=0)) == model.BOOK
    torch.testing.assert_close(entries.norm(dim=-1), torch.ones(model.BOOK))


def test_a_gradient_passes_signs_as_if_they_were_none(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    own, pictures = book.Book(model.build().model.vqmodel), book.drawn(0, 0, CPU)
    whole = torch.ones(len(pictures), model.BITS, model.SIDE, model.SIDE, dtype=torch.bool)
    own(pictures, whole).square().mean().backward()
    assert own.vq.quant_conv.weight.grad is not None
    assert own.vq.quant_conv.weight.grad.abs().max() > 0
    assert own.vq.quantize.embedding.weight.grad is None


def test_pictures_are_plain_and_lack_what_is_held_out() -> None:
    scenes = plain.plain_scenes(400, torch.Generator().manual_seed(0))
    assert len(scenes) == 400
    assert not scenes.style.any()
    assert not scenes.mark.any()
    assert not held_out() & set(scenes.triples())


def test_a_killed_training_of_the_book_goes_on_to_the_same_weights(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book.run(out, CPU, 0)
    whole = load_file(out / "book" / "model.safetensors")
    (out / "checkpoints" / "book.safetensors").unlink()
    drawn = book.drawn

    def killed(seed: int, step: int, device: Any) -> Any:
        if step == 1:
            raise KeyboardInterrupt
        return drawn(seed, step, device)

    with monkeypatch.context() as patched:
        patched.setattr(book, "drawn", killed)
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
    inputs = model.processor()(text=["a red star"], generation_mode="image", return_tensors="pt")
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
    inputs = processor(text=["a red star"], generation_mode="image", return_tensors="pt")
    drawn = load_model(out / "model").model.generate(**inputs, generation_mode="image", do_sample=False)
    assert drawn.shape == (1, model.TOKENS)
    assert janus.dtype == torch.float32
    assert (out / "model" / "model.safetensors").stat().st_size < 16 * 2**20
    tokens = torch.randint(model.BOOK, (1, model.TOKENS))
    assert janus.decode_image_tokens(tokens).shape == (1, 32, 32, 3)
    ids = processor(text=["a red star"], generation_mode="image", return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 5)
