"""ItD: which features are chosen, what the gate lets pass, and that all else stays as it is; training."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import torch
from support.saes import OPTIONS, embed, save_saes
from support.tiny import draw, same, weights

from erasers import Concept, ErasedPipeline, Patch, get_eraser, load_pipeline, worlds
from erasers.methods.itd.eraser import activity, floors_of, read_saes, select, statistic, thresholds
from erasers.sae.autoencoder import SAE
from erasers.sae.rows import TextRows, split, turn
from erasers.sae.text_blocks import encoder_block, find_block, find_blocks
from erasers.sae.training import SAETraining, train_sae
from erasers.worlds.shapes.prompts import concept_for, split_prompts

THINGS, COLOURS = ("star", "circle", "ring", "moon"), ("red", "blue")
PROMPTS = [
    " ".join(words).strip()
    for words in itertools.product(("", "a", "a picture of a"), ("", *COLOURS), THINGS, ("", "art"))
]
KEPT = tuple(text for text in PROMPTS if "star" not in text)
STAR = Concept("star", anchor="circle", preserve=KEPT)
QUICK = SAETraining(features=64, k=4, steps=50, prompts=12, lr=1e-2, warmup=5, dead_after=500, auxiliary=16)


def rows(block: Any, prompts: Any = PROMPTS, size: int = QUICK.prompts) -> TextRows:
    return TextRows(block, prompts, size, 0)


@pytest.fixture(scope="module")
def saes(pipes, tmp_path_factory) -> dict[str, tuple[str, ...]]:
    return {family: save_saes(pipes(family), tmp_path_factory.mktemp(family)) for family in ("sd1", "sdxl")}


@pytest.fixture(scope="module")
def shapes() -> Any:
    return load_pipeline("shapes")


# Selection and thresholds


def test_targets_are_active_with_the_concept_and_in_no_kept_prompt():
    asked = torch.tensor([[5.0, 4.0, 0.0, 1.0, 0.1], [5.0, 0.0, 0.0, 1.0, 0.1], [5.0, 0.0, 0.0, 1.0, 0.1]])
    kept = torch.tensor([[0.0, 0.0, 3.0, 0.0, 9.0], [1.0, 0.0, 3.0, 0.0, 0.0]])
    assert select(asked, kept, 5, 0.0, 0.0).tolist() == [1, 3]
    assert select(asked, kept, 1, 0.0, 0.0).tolist() == []
    assert select(asked, kept, 5, 0.3, 0.0).tolist() == [0, 1, 3]
    assert select(asked, kept, 5, 0.3, 0.5).tolist() == [0, 3]
    # Features that are not active are never among the largest.
    assert select(torch.zeros(2, 5), kept, 5, 0.0, 0.0).tolist() == []


def test_one_threshold_on_one_statistic():
    asked, kept = torch.tensor([[4.0, 0.0], [1.0, 2.0]]), torch.tensor([[0.4, 0.1], [0.1, 0.1]])
    gate = thresholds(asked, kept, 0.5)
    low, high = 0.1 * 1.001, 1.0
    torch.testing.assert_close(gate, torch.tensor([4.0, 2.0]) * (low + 0.5 * (high - low)))
    unit = asked.amax(dim=0)
    for some, passes in ((asked, True), (kept, False)):
        said = (some > gate).any(dim=1)
        assert torch.equal(said, statistic(some, unit) > gate[0] / unit[0])
        assert bool(said.all()) is passes
    # Where they overlap, no kept prompt passes.
    kept[0, 0] = 3.9
    assert not (kept > thresholds(asked, kept, 0.5)).any()


def test_floors():
    sae = SAE(4, 3, 1)
    sae.threshold.fill_(0.7)
    asked = torch.tensor([[0.0, 2.0], [1.0, 3.0]])
    assert floors_of(sae, asked).tolist() == pytest.approx([0.7, 0.7])
    sae.activation = "topk"
    assert floors_of(sae, asked).tolist() == pytest.approx([1.0, 2.0], rel=1e-3)


# On tiny pipelines


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_concept_moves_and_nothing_else_does(pipes, saes, family):
    pipe = pipes(family)
    before, plain = weights(pipe), draw(pipe)
    star, kept = embed(pipe, "star"), embed(pipe, *KEPT, "")
    patch = get_eraser("itd", sae=saes[family], **OPTIONS).fit(pipe, STAR)
    assert same(weights(pipe), before)
    assert [hook.component for hook in patch.hooks] == [block.name for block in find_blocks(pipe)]
    with patch.applied(pipe):
        assert torch.equal(embed(pipe, *KEPT, ""), kept)
        moved = embed(pipe, "star")
        assert torch.equal(moved[:, 0], star[:, 0])
        assert not torch.equal(moved, star)
        width = pipe.text_encoder.config.hidden_size
        for part in (slice(0, width), slice(width, None)) if family == "sdxl" else (slice(None),):
            assert not torch.equal(moved[..., part], star[..., part])
        assert not torch.equal(draw(pipe), plain)
        # In one batch with others, and as the negative prompt.
        both = embed(pipe, "a red moon", "star")
        torch.testing.assert_close(both, torch.cat([embed(pipe, "a red moon"), moved]))
    assert torch.equal(draw(pipe), plain)


def test_a_saved_folder_and_a_file(pipes, saes, tmp_path):
    pipe = pipes("sd1")
    patch = get_eraser("itd", sae=saes["sd1"], **OPTIONS).fit(pipe, STAR)
    patch.save(tmp_path / "x.safetensors")
    with Patch.load(tmp_path / "x.safetensors").applied(pipe):
        erased = embed(pipe, "star")
    patch.apply(pipe)
    ErasedPipeline.save_pretrained(pipe, tmp_path / "folder", [patch])
    torch.testing.assert_close(embed(load_pipeline(tmp_path / "folder"), "star"), erased)
    patch.remove(pipe)
    assert not torch.equal(embed(pipe, "star"), erased)
    other = pipes("sd1")
    other.text_encoder.get_parameter("encoder.layers.0.mlp.fc1.weight").data.add_(0.1)
    with pytest.raises(ValueError, match="other weights: text_encoder.encoder.layers.0"):
        patch.apply(other)


def test_another_concept_adds_features_and_stacks(pipes, saes):
    pipe = pipes("sd1")
    eraser = get_eraser("itd", sae=saes["sd1"], **OPTIONS)
    kept = [text for text in KEPT if "moon" not in text]
    star, moon = (Concept(name, anchor="circle", preserve=kept) for name in ("star", "moon"))
    alone, both = eraser.fit(pipe, star), eraser.fit(pipe, [star, moon])

    def encoders(patch: Patch) -> set[tuple[float, ...]]:
        (name,) = (name for name in patch.tensors if name.endswith("/encoder"))
        return {tuple(row) for row in patch.tensors[name].tolist()}

    assert encoders(alone) < encoders(both)
    for text in ("star", "moon"):
        plain = embed(pipe, text)
        with both.applied(pipe):
            assert not torch.equal(embed(pipe, text), plain)


def test_compiled_and_in_half_precision(pipes, saes):
    pipe = pipes("sd1")
    patch = get_eraser("itd", sae=saes["sd1"], **OPTIONS).fit(pipe, STAR)
    pipe.text_encoder.to(torch.bfloat16)
    kept, star = embed(pipe, "a moon"), embed(pipe, "star")
    with patch.applied(pipe, force=True):
        assert torch.equal(embed(pipe, "a moon"), kept)
        assert embed(pipe, "star").dtype == torch.bfloat16
        assert not torch.equal(embed(pipe, "star"), star)
    pipe.text_encoder.to(torch.float32)
    with patch.applied(pipe, force=True):
        erased = embed(pipe, "star")
        pipe.text_encoder.encoder.layers[1].compile(backend="eager")
        torch.testing.assert_close(embed(pipe, "star"), erased)


def test_offloaded(pipes, saes):
    pipe = pipes("sd1")
    patch = get_eraser("itd", sae=saes["sd1"], **OPTIONS).fit(pipe, STAR)
    with patch.applied(pipe):
        erased = draw(pipe)
        pipe.enable_model_cpu_offload(device="cpu")
        for _ in range(2):
            assert torch.equal(draw(pipe), erased)


def test_what_is_refused(pipes, saes, tmp_path):
    pipe = pipes("sd1")
    with pytest.raises(ValueError, match="erase sae train --model MODEL --component text_encoder"):
        get_eraser("itd").fit(pipe, STAR)
    with pytest.warns(UserWarning, match=r"pipe\.text_encoder_2 is not edited, .* give an autoencoder of it, too"):
        get_eraser("itd", sae=saes["sdxl"][:1], **OPTIONS).fit(pipes("sdxl"), STAR)
    other = pipes("sd1")
    other.text_encoder.get_parameter("encoder.layers.0.mlp.fc1.weight").data.add_(0.1)
    with pytest.raises(ValueError, match="of other weights"):
        get_eraser("itd", sae=saes["sd1"], **OPTIONS).fit(other, STAR)
    with pytest.raises(FileNotFoundError, match="no file"):
        get_eraser("itd", sae=(str(tmp_path / "none"),)).fit(pipe, STAR)
    with pytest.raises(ValueError, match="fire for 'zz' alone, got none"):
        get_eraser("itd", sae=saes["sd1"]).fit(pipe, Concept("zz", preserve=KEPT))
    for options, message in (({"scale": float("inf")}, "scale"), ({"top": 0}, "top"), ({"quiet": 2.0}, "quiet")):
        with pytest.raises(ValueError, match=message):
            get_eraser("itd", **options)
    with pytest.raises(ValueError, match="a block from 0 to 1"):
        encoder_block(pipe, "text_encoder", 2)
    with pytest.raises(ValueError, match="block from 0 to 0"):
        encoder_block(pipes("sdxl"), "text_encoder_2", 1)
    with pytest.raises(ValueError, match="got one without it"):
        find_block(pipe, "text_encoder.final_layer_norm")


# Training


def test_training_explains_rows_and_revives_features(pipes):
    block = find_blocks(pipes("sd1"))[0]
    trained = train_sae(rows(block), QUICK)
    assert trained.quality.explained_variance > 0.5
    assert trained.curves["unexplained"][0] > 2 * trained.curves["unexplained"][-1]
    assert max(trained.curves["auxiliary"]) > 0
    torch.testing.assert_close(trained.sae.decoder.norm(dim=1), torch.ones(QUICK.features))
    kept, held = split(PROMPTS)
    assert not set(kept) & set(held)
    with pytest.raises(ValueError, match="dead_after below the"):
        train_sae(rows(block, size=2), SAETraining(steps=2, prompts=2, features=8, k=2))


def test_padding_is_left_out_unless_it_is_asked_for(pipes):
    block = find_blocks(pipes("sd1"))[0]
    plain, padded = rows(block), TextRows(block, PROMPTS, QUICK.prompts, 0, padding=True)
    prompts = turn(split(PROMPTS)[0], 3, QUICK.prompts, 0)
    outputs, lengths = block.outputs(prompts), [len(block.tokenizer(prompt).input_ids) for prompt in prompts]
    wanted = [row for output, length in zip(outputs, lengths, strict=True) for row in output[1:length]]
    assert torch.equal(plain.step(3), torch.stack(wanted))
    assert torch.equal(padded.step(3), outputs[:, 1:].flatten(0, 1))
    assert len(plain.step(3)) < 0.5 * len(padded.step(3))
    held = split(PROMPTS)[1]
    assert sum(map(len, plain.held())) == sum(len(block.tokenizer(prompt).input_ids) - 1 for prompt in held)
    assert (plain.identity(), plain.about()) == ([*padded.identity()[:-1], False], {"padding": False})
    # The file in the package says nothing of padding, and has to be made anew bit for bit.
    assert padded.about() == {}


def test_prompts_are_split_in_linear_time(monkeypatch):
    many = [str(number) for number in range(40_000)]
    started = time.process_time()
    kept, held = split(many)
    assert time.process_time() - started < 2
    assert (len(kept), len(held), held[1]) == (38_000, 2_000, "20")


def test_a_killed_training_goes_on_to_the_same_autoencoder(pipes, tmp_path):
    block, path = find_blocks(pipes("sd1"))[0], tmp_path / "checkpoint"
    short = SAETraining(features=48, k=4, steps=12, prompts=24, lr=1e-2, warmup=2, dead_after=500, auxiliary=8)
    whole = train_sae(rows(block, size=24), short)

    class Killed(Exception):
        pass

    def tell(count: int, text: str) -> None:
        tell.steps += count  # type: ignore[attr-defined]
        if tell.steps == 7:  # type: ignore[attr-defined]
            raise Killed

    tell.steps = 0  # type: ignore[attr-defined]
    with pytest.raises(Killed):
        train_sae(rows(block, size=24), short, checkpoint=path, seconds_between_checkpoints=0.0, tell=tell)
    resumed = train_sae(rows(block, size=24), short, checkpoint=path)
    assert resumed.curves == whole.curves
    pairs = zip(resumed.sae.parameters(), whole.sae.parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)
    with pytest.raises(ValueError, match="checkpoint of this training"):
        train_sae(rows(block, PROMPTS[:-1], size=24), short, checkpoint=path)


# On the embedded model


def test_prompts_of_the_embedded_world_are_not_those_that_are_scored():
    texts = worlds.get("shapes").captions(300)
    assert len(set(texts)) == 300
    scored = {ask.text for word in ("star", "zorblat") for asks in split_prompts(word, 200).values() for ask in asks}
    assert not scored & set(texts)


@pytest.mark.parametrize("name", ["star", "zorblat"])
def test_the_gate_on_the_embedded_model(shapes, name):
    patch = get_eraser("itd-shapes").fit(shapes, concept_for(name))
    assert patch.nbytes < 64 * 1024
    splits = {split: [ask.text for ask in asks] for split, asks in split_prompts(name, 40).items()}
    plain = {split: embed(shapes, *texts) for split, texts in splits.items()}
    with patch.applied(shapes):
        for split_, texts in splits.items():
            kept = (embed(shapes, *texts) == plain[split_]).flatten(1).all(dim=1).double().mean()
            assert kept <= 0.01 if split_ in ("explicit", "synonym") else kept >= 0.97


def test_no_kept_prompt_has_an_active_target(shapes):
    concept, eraser = concept_for("heart"), get_eraser("itd-shapes")
    ((block, sae, _),) = read_saes(shapes, "auto")
    parts = eraser.parts(block, sae, [concept])
    numbers = [int((sae.encoder == row).all(dim=1).nonzero()) for row in parts["encoder"]]
    kept = activity(sae, block, list(concept.preserve)).strength[:, numbers]
    assert not (kept > parts["gate"]).any()
