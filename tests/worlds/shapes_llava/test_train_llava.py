"""The training of `shapes-llava`, cut to a few steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.short import shorten
from transformers import AutoProcessor, LlavaForConditionalGeneration

from erasers.worlds.shapes import render
from erasers.worlds.shapes.scenes import training_scenes
from erasers.worlds.shapes.train.words import build_tokenizer
from erasers.worlds.shapes_llava.train import __main__ as command
from erasers.worlds.shapes_llava.train import model, sight
from erasers.worlds.training.loop import seed_step

CPU = torch.device("cpu")


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shorten(monkeypatch, (sight, "RECIPE"), (sight, "PLACES_RECIPE"))
    monkeypatch.setattr(sight, "BATCH", 6)
    return tmp_path


def test_the_model_is_small() -> None:
    assert 1e6 < sum(parameter.numel() for parameter in model.build().parameters()) < 3e6


def test_answers_alone_are_learned_and_name_what_is_in_the_picture(out: Path) -> None:
    given, tokenizer = sight.batch(0, 3, None, CPU), build_tokenizer()
    labels = [row[row >= 0] for row in given["labels"]]
    texts = sight.answers(training_scenes(sight.BATCH, seed_step(0, 3)))
    assert [tokenizer.decode(row) for row in labels] == [f"{text} </s>" for text in texts]
    assert len(given["pixel_values"]) == len(texts) - sight.TEXT_ONLY
    images = (given["input_ids"] == tokenizer.convert_tokens_to_ids("<image>")).sum(dim=1)
    assert images.tolist() == [model.PLACES] * 2 + [0] * sight.TEXT_ONLY
    again = sight.batch(0, 3, None, CPU)
    assert all(torch.equal(given[name], again[name]) for name in given)


def test_without_a_word_no_picture_shows_it(out: Path) -> None:
    tokenizer = build_tokenizer()
    star = tokenizer.convert_tokens_to_ids("star")
    assert any((sight.batch(0, step, None, CPU)["input_ids"] == star).any() for step in range(8))
    for step in range(8):
        given = sight.batch(0, step, "star", CPU)
        assert len(given["labels"]) == 6
        assert not (given["input_ids"] == star).any()


def test_the_model_is_trained_on_what_its_processor_makes(out: Path) -> None:
    generator = seed_step(0, 3)
    scenes = training_scenes(sight.BATCH, generator)
    pictures = render.render(scenes, generator)
    rows = ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    given = sight.batch(0, 3, None, CPU)
    question = f"<image> {sight.QUESTION} {sight.answers(scenes)[0]}"
    inputs = model.processor()(text=[question], images=[Image.fromarray(rows[0])], return_tensors="pt")
    kept = given["attention_mask"][0].bool()
    assert torch.equal(inputs["input_ids"][0], given["input_ids"][0][kept][:-1])
    torch.testing.assert_close(inputs["pixel_values"], given["pixel_values"][:1], atol=0.01, rtol=0)


def test_every_place_is_to_say_the_object_of_its_own_picture() -> None:
    said = torch.zeros(2, 3, 10)
    said[0, :, 4] = said[1, :2, 7] = 50.0
    loss, right = sight.place_loss(said, torch.tensor([4, 7]))
    assert right.item() == pytest.approx(5 / 6)
    assert loss.item() == pytest.approx(math.log(10) / 6, abs=1e-4)


def test_the_second_part_trains_the_tower_and_leaves_nothing_behind(out: Path) -> None:
    torch.manual_seed(0)
    llava = model.build()
    names, before = [*llava.state_dict()], llava.model.vision_tower.embeddings.patch_embedding.weight.detach().clone()
    sight.learn_places(llava, "places", out, 0, None)
    assert [*llava.state_dict()] == names
    assert not llava.model.multi_modal_projector._forward_hooks
    assert not torch.equal(llava.model.vision_tower.embeddings.patch_embedding.weight, before)


def test_a_killed_training_goes_on_to_the_same_weights(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sight.run(out, CPU, 0)
    whole = load_file(out / "sight" / "model.safetensors")
    (out / "checkpoints" / "sight.safetensors").unlink()
    made = sight.batch

    def killed(seed: int, step: int, *others: Any) -> Any:
        if step == 1:
            raise KeyboardInterrupt
        return made(seed, step, *others)

    with monkeypatch.context() as patched:
        patched.setattr(sight, "batch", killed)
        with pytest.raises(KeyboardInterrupt):
            sight.run(out, CPU, 0)
    sight.run(out, CPU, 0)
    resumed = load_file(out / "sight" / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_every_stage_runs_and_the_result_is_a_plain_model(out: Path) -> None:
    command.main(["--out", str(out)])
    llava = LlavaForConditionalGeneration.from_pretrained(out / "model")
    processor = AutoProcessor.from_pretrained(out / "model")
    assert llava.dtype == torch.float32
    assert (out / "model" / "model.safetensors").stat().st_size < 16 * 2**20
    inputs = processor(text=["<image> a picture of"], images=[Image.new("RGB", (32, 32))], return_tensors="pt")
    answer = llava.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert answer.shape[1] <= inputs["input_ids"].shape[1] + 2
