"""Few-shot unlearning: what moves, which way, how far at most, and what the embedded model draws then."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from PIL import Image
from support.families.all import FAMILIES
from support.selection import only
from support.tiny import weights
from support.trained import fitted_in_two_goes

from erasers import Concept, get_eraser, load_pipeline
from erasers.diffusion.clip import encode
from erasers.diffusion.latents import latents_of
from erasers.diffusion.noise import noised
from erasers.diffusion.tokens import tokenise
from erasers.evaluation.drawing import generate
from erasers.judges import get_judge
from erasers.methods.few_shot import Bound, Outputs, Shots, apart, ascent_loss, draw, trained_names
from erasers.models.feeding import feeds_of
from erasers.training.pictures import picture
from erasers.training.student import Student
from erasers.worlds.shapes.prompts import concept_for, split_prompts

KEPT = ("moon", "blue", "a red moon", "art", "a picture of a blue moon")
STAR = Concept("star", anchor="circle", preserve=KEPT, neighbours=("ring",))
QUICK = {"iterations": 20, "lr": 1e-3, "steps": 2, "templates": ("{}", "a {}", "a picture of a {}", "a red {}")}


def few_shot(**options: Any) -> Any:
    return get_eraser("few_shot", **QUICK | options)


def longer(pipe: Any, layers: int) -> Any:
    """The pipeline with a text encoder of so many layers."""
    blocks = pipe.text_encoder.encoder.layers
    while len(blocks) < layers:
        blocks.append(copy.deepcopy(blocks[0]))
    pipe.text_encoder.config.num_hidden_layers = layers
    return pipe


def drifts(pipe: Any, patch: Any, texts: tuple[str, ...] = (*KEPT, "", "ring", "circle")) -> torch.Tensor:
    ids = tokenise(pipe, texts)
    with torch.no_grad():
        before = encode(pipe, ids)
        with patch.applied(pipe):
            after = encode(pipe, ids)
    return (after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)


def made(loss: Any) -> list[torch.Tensor]:
    """The summands of a loss."""
    return [loss.make(number) for number in range(len(loss))]


@pytest.mark.parametrize("layers", [2, 3])
def test_every_feed_forward_part_and_the_last_attention_move_and_nothing_else(pipe, layers):
    pipe = longer(pipe, layers)
    before = weights(pipe)
    with few_shot().fit(pipe, STAR, progress=False).applied(pipe):
        after = weights(pipe)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    parts = [f"mlp.fc{number}.{leaf}" for number in (1, 2) for leaf in ("weight", "bias")]
    wanted = {f"text_encoder.encoder.layers.{layer}.{part}" for layer in range(layers) for part in parts}
    last = f"text_encoder.encoder.layers.{layers - 1}.self_attn."
    attention = {f"{last}{name}_proj.{leaf}" for name in ("q", "k", "v", "out") for leaf in ("weight", "bias")}
    assert set(trained_names(pipe)) == wanted | attention
    # Attention adds the same to every key when their bias moves: that has no gradient.
    assert moved | {f"{last}k_proj.bias"} == wanted | attention | {f"{last}k_proj.bias"}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_is_minus_that_of_the_model(pipe, kind):
    pipe.scheduler.register_to_config(prediction_type=kind)
    latents, texts = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), ["star", "moon"]
    generator, again = (torch.Generator().manual_seed(2) for _ in range(2))
    (found,) = made(ascent_loss(pipe, latents, texts, generator))
    times = torch.randint(100, (2,), generator=again)
    noise = torch.randn(latents.shape, generator=again)
    target = noise if kind == "epsilon" else pipe.scheduler.get_velocity(latents, noise, times)
    states = encode(pipe, tokenise(pipe, texts))
    guess = pipe.unet(noised(pipe, latents, times, noise), times, encoder_hidden_states=states).sample
    torch.testing.assert_close(found, -(target - guess).square().mean())
    assert found < 0


def test_the_error_on_the_pictures_goes_up(pipe):
    images = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green", "white")]
    concept = Concept("star", anchor="circle", preserve=KEPT, images=images)
    pairs = latents_of(pipe, images), ["a picture of a star"] * len(images)

    def error() -> float:
        with torch.no_grad():
            losses = [
                loss
                for seed in range(20)
                for loss in made(ascent_loss(pipe, *pairs, torch.Generator().manual_seed(seed)))
            ]
        return -float(torch.stack(losses).mean())

    before = error()
    with few_shot(max_drift=None).fit(pipe, concept, progress=False).applied(pipe):
        after = error()
    assert after > before * 1.001


def test_pictures_of_the_concept_are_used_and_may_be_files(pipe, tmp_path):
    image = Image.effect_noise((40, 24), 80).convert("RGB")
    image.save(tmp_path / "star.png")
    fit = {
        name: few_shot(iterations=2).fit(pipe, Concept("star", images=images), progress=False)
        for name, images in {"drawn": (), "open": [image], "file": [tmp_path / "star.png"]}.items()
    }
    assert fit["open"].digest == fit["file"].digest
    assert not all(torch.equal(value, fit["open"].tensors[name]) for name, value in fit["drawn"].tensors.items())
    assert picture(image, (16, 16)).size == (16, 16)


@pytest.mark.parametrize("got", [3, "nothing.png", __file__])
def test_what_is_no_picture_is_refused(pipe, got):
    with pytest.raises(ValueError, match=r"expected (a picture|pictures).*(3|nothing\.png|test_few_shot)"):
        few_shot().fit(pipe, Concept("star", images=[got]), progress=False)


def test_every_concept_is_drawn_with_its_own_prompts():
    shots = [Shots(torch.full((2, 1, 1, 1), float(number)), (str(number),) * 3) for number in range(2)]
    latents, texts = draw(shots, 4, torch.Generator().manual_seed(0))
    assert latents.flatten().tolist() == [float(text) for text in texts]
    assert sorted(texts) == ["0", "0", "1", "1"]
    assert len(draw(shots, 9, torch.Generator())[0]) == 4


@pytest.mark.parametrize("family", only(["sdxl", "sd3"], "sdxl"))
def test_each_output_of_each_encoder_keeps_to_its_bound(family, tmp_path):
    pipe = FAMILIES[family].build(tmp_path)
    few = {"iterations": 6, "lr": 1e-3, "max_drift": 0.1, "encoders": tuple(feeds_of(pipe))}
    patch = few_shot(**few).fit(pipe, STAR, progress=False)
    outputs = Outputs(pipe, Student(pipe, trained_names(pipe, None, few["encoders"]), generator=torch.Generator()))
    texts = [*KEPT, "", "ring", "circle"]
    with torch.no_grad():
        before = outputs(texts)
        with patch.applied(pipe):
            after = outputs(texts)
    pairs = [(now.flatten(1), was.flatten(1)) for now, was in zip(after, before, strict=True)]
    worst = [float(((now - was).norm(dim=1) / was.norm(dim=1)).max()) for now, was in pairs]
    assert len(worst) == {"sdxl": 3, "sd3": 5}[family]
    assert 0.05 < max(worst) < 0.102
    assert min(worst) > 0


def test_an_automatic_bound_is_that_of_each_output(pipes):
    pipe = pipes("sdxl")
    outputs = Outputs(pipe, Student(pipe, trained_names(pipe), generator=torch.Generator()))
    texts = ["star", "moon", "a red moon"]
    with torch.no_grad():
        rows = [value.flatten(1).double() for value in outputs(texts)]
    pairs = [(left, right) for left in range(3) for right in range(3) if left != right]
    wanted = [sum(float((row[i] - row[j]).norm() / row[i].norm()) for i, j in pairs) / 6 for row in rows]
    assert apart(outputs, [*texts, "star"]) == pytest.approx(wanted, rel=1e-4)
    assert len(set(wanted)) == 3


@pytest.mark.full
@pytest.mark.parametrize("most", [0.2, 0.4])
def test_kept_prompts_drift_no_further_than_allowed(pipe, most):
    long = {"lr": 5e-4, "iterations": 30}
    free = few_shot(**long, max_drift=None).fit(pipe, STAR, progress=False)
    held = few_shot(**long, max_drift=most).fit(pipe, STAR, progress=False)
    # What is saved is rounded to float16.
    assert 0.5 * most < drifts(pipe, held).max() < most + 0.002
    assert drifts(pipe, free).max() > 1.0


def test_without_corrections_the_step_too_far_is_undone(pipe, capsys):
    options = {"lr": 2e-4, "max_drift": 0.2, "corrections": 0}
    held = few_shot(**options).fit(pipe, STAR)
    taken = int(capsys.readouterr().err.split("stopped after ")[1].split()[0]) - 1
    assert 1 < taken < QUICK["iterations"] - 1
    free = options | {"max_drift": 99.0}
    same, more = (few_shot(**free | {"iterations": taken + extra}).fit(pipe, STAR, progress=False) for extra in (0, 1))
    assert all(torch.equal(value, same.tensors[name]) for name, value in held.tensors.items())
    assert drifts(pipe, held).max() <= 0.2 < drifts(pipe, more).max() + 0.002


def test_a_first_step_too_far_is_refused(pipe):
    with pytest.raises(ValueError, match=r"max_drift.*got 0\.01; lower lr"):
        few_shot(lr=1e-2, max_drift=0.01, corrections=1).fit(pipe, STAR, progress=False)


def test_the_published_steps_are_all_taken_with_the_default_bound(pipe):
    """Ten steps of Adam with 1e-5, which the bound neither cuts short nor changes on these weights."""
    fit = {
        most: get_eraser("few_shot", steps=2, max_drift=most).fit(pipe, STAR, progress=False) for most in (0.5, 99.0)
    }
    assert all(torch.equal(value, fit[99.0].tensors[name]) for name, value in fit[0.5].tensors.items())


def test_a_correction_brings_kept_prompts_back(pipe):
    student = Student(pipe, trained_names(pipe), generator=torch.Generator())
    bound = Bound(Outputs(pipe, student), student, ["moon", ""], most=[1e-3], corrections=1, lr=1e-4)
    with torch.no_grad():
        for number, part in enumerate(student.parameters):
            part.add_(torch.randn(part.shape, generator=torch.Generator().manual_seed(number)), alpha=1e-2)
    before, start = bound.worst(), [part.detach().clone() for part in student.parameters]
    with student.placed():
        student.backward(bound.excess())
    bound.adam.step()
    assert bound.worst() < before
    # One step back is not enough here, so the weights are those that were given.
    assert [bound.hold(start)["drift"]] == before
    assert bound.why
    assert all(torch.equal(part, value) for part, value in zip(student.parameters, start, strict=True))


def test_goes_on_from_a_checkpoint_amid_corrections(pipe, tmp_path):
    eraser = few_shot(lr=5e-4, iterations=8, max_drift=0.2)
    whole, patch = eraser.fit(pipe, STAR, progress=False), fitted_in_two_goes(eraser, pipe, STAR, tmp_path / "a", 5)
    assert patch.digest == whole.digest


@pytest.mark.parametrize(
    ("option", "value"),
    [("max_drift", 0.0), ("pictures", 0), ("batch", 0), ("kept", 0), ("corrections", -1), ("templates", ("a star",))],
)
def test_bad_options_raise(option, value):
    with pytest.raises(ValueError, match=option):
        few_shot(**{option: value})


@pytest.mark.full
def test_without_a_bound_the_embedded_model_is_destroyed_and_with_one_only_the_concept_goes():
    pipe, concept = load_pipeline("shapes"), concept_for("heart")
    pipe.set_progress_bar_config(disable=True)
    hard = {"lr": 3e-3, "iterations": 15, "pictures": 2, "steps": 10, "guidance": 4.0}
    shares: dict[Any, dict[str, float]] = {}
    for most in (None, 0.3):
        with few_shot(**hard, max_drift=most).fit(pipe, concept, progress=False).applied(pipe):
            shares[most] = {split: share(pipe, "heart", split) for split in ("explicit", "unrelated")}
    assert share(pipe, "heart", "explicit") >= 0.75
    assert shares[None]["unrelated"] <= 0.5
    assert shares[0.3]["unrelated"] >= 0.75
    assert shares[0.3]["explicit"] <= 0.25


def share(pipe: Any, concept: str, split: str) -> float:
    """Share of eight pictures that show what their prompt wants."""
    asks = split_prompts(concept, 8, seed=5)[split]
    images = [one for part in generate(pipe, asks, steps=10, guidance=4.0, batch=8, size=None) for one in part]
    verdicts = get_judge("oracle/shapes").judge(images, asks)
    return sum(bool(verdict.value) for verdict in verdicts) / len(verdicts)
