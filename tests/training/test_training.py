"""What trained erasers share: the student, the bank, the pool, prompts in pairs, soft prompts and the loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import draw, same, weights
from support.trained import NOW
from torch.nn import functional

from erasers import Concept, get_eraser
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.denoiser import predict
from erasers.diffusion.latent_bank import Way, draw_pictures, sample_bank
from erasers.diffusion.noise import clean, noise_again, step_back, time_grid
from erasers.diffusion.supported import check_drawable
from erasers.methods.robust_ablation.pool import Maker
from erasers.methods.robust_ablation.soft_bank import SoftBank
from erasers.text.contexts import contexts, kept_prompts
from erasers.training import loop as training
from erasers.training.student import Student, names_of

STAR = Concept("star", anchor="circle", preserve=["a moon", "a red circle", "blue"], neighbours=["ring"])
ESD = {"iterations": 6, "lr": 1e-2, "steps": 2, "pictures": 2}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cross(module: Any, path: str) -> bool:
    return isinstance(module, torch.nn.Linear) and ".attn2." in path


@pytest.mark.parametrize("rank", [0, 2])
def test_the_student_acts_only_where_it_is_placed(pipe, rank):
    before, picture = weights(pipe), draw(pipe)
    student = Student(pipe, names_of(pipe, "unet", cross), rank=rank, generator=seeded())
    with student.placed():
        assert torch.allclose(picture, draw(pipe), atol=1e-5)
    for parameter in student.parameters:
        parameter.data.add_(0.3)
    with student.placed():
        assert not torch.allclose(picture, draw(pipe), atol=1e-3)
    with pytest.raises(RuntimeError, match="inside"), student.placed():
        raise RuntimeError("inside")
    assert same(before, weights(pipe))
    assert torch.equal(picture, draw(pipe))


@pytest.mark.parametrize("rank", [0, 2])
def test_the_patch_of_a_student_draws_what_the_student_drew(pipe, rank):
    student = Student(pipe, names_of(pipe, "unet", cross), rank=rank, generator=seeded())
    for parameter in student.parameters:
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=seeded(1)))
    with student.placed():
        trained = draw(pipe)
    plain = draw(pipe)
    patch = student.patch(get_eraser("esd"), [STAR])
    assert set(patch.parameters) == {name for name in student.names if not rank or name.endswith(".weight")}
    assert {tensor.dtype for tensor in patch.tensors.values()} == {torch.float16}
    with patch.applied(pipe):
        # Float16 is what is lost.
        assert (draw(pipe) - trained).abs().max() < 0.02 * (plain - trained).abs().max()


def test_gradients_reach_the_student_and_nothing_else(pipe):
    student = Student(pipe, names_of(pipe, "unet", cross), generator=seeded())
    condition, times = conditions(pipe, ["star"]), torch.tensor([50])
    with student.placed():
        student.backward(predict(pipe, torch.ones(1, 4, 8, 8), times, condition).square().mean(), clip=1e-3)
    norm = torch.stack([parameter.grad.norm() for parameter in student.parameters]).norm()
    assert torch.allclose(norm, torch.tensor(1e-3), rtol=1e-3)
    assert all(parameter.grad is None for parameter in pipe.unet.parameters())


def test_a_student_that_did_not_move_or_diverged_makes_no_patch(pipe):
    student = Student(pipe, names_of(pipe, "unet", cross), generator=seeded())
    with pytest.raises(ValueError, match="none that moved"):
        student.patch(get_eraser("esd"), [STAR])
    student.parameters[0].data.fill_(float("nan"))
    with pytest.raises(ValueError, match="diverged"):
        student.patch(get_eraser("esd"), [STAR])


def test_names_leave_out_adapters(pipe):
    from peft import LoraConfig

    plain = names_of(pipe, "unet", cross)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"]))
    assert names_of(pipe, "unet", cross) == plain
    with pytest.raises(ValueError, match="got none by these names"):
        Student(pipe, names_of(pipe, "unet", lambda module, path: False), generator=seeded())


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_where_nothing_is_asked_banks_have_what_the_pipeline_guides_with(pipes, family, zeros):
    pipe = pipes(family)
    if family == "sdxl":
        pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
    found = unprompted(pipe)
    _, negative, *pooled = pipe.encode_prompt(
        "a star", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    assert torch.equal(found.states, negative)
    assert found.states.any() == (family == "sd1" or not zeros)
    if family == "sdxl":
        assert torch.equal(found.pooled, pooled[1])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_bank_ends_where_the_pipeline_does(pipes, family, kind):
    pipe = pipes(family)
    pipe.scheduler.register_to_config(prediction_type=kind)
    noise = torch.randn(1, 4, 8, 8, generator=seeded(5))
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent", "latents": noise}
    with torch.no_grad():
        expected = pipe("a red star", **options).images
    pair = conditions(pipe, ["a red star"]), unprompted(pipe)
    bank = sample_bank(pipe, *pair, Way(4, 3.0), rounds=1, generator=seeded(5))
    torch.testing.assert_close(bank.pictures, expected, rtol=1e-3, atol=1e-4)
    pictures = draw_pictures(pipe, *pair, Way(4, 3.0), seeded(5))
    assert torch.equal(pictures, bank.pictures)
    assert bank.times.tolist() == time_grid(pipe, 4)
    for row in range(4):
        some, time = bank.latents[row : row + 1], bank.times[row : row + 1]
        with torch.no_grad():
            torch.testing.assert_close(bank.conditional[row : row + 1], predict(pipe, some, time, pair[0]))
            torch.testing.assert_close(bank.empty[row : row + 1], predict(pipe, some, time, pair[1]))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_leads_back_to_the_picture(pipe, kind):
    pipe.scheduler.register_to_config(prediction_type=kind)
    pictures = torch.randn(3, 4, 8, 8, generator=seeded())
    noisy, times, perfect = noise_again(pipe, pictures, seeded(1))
    a = pipe.scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
    noise = (noisy - a.sqrt() * pictures) / (1 - a).sqrt()
    expected = noise if kind == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * pictures
    torch.testing.assert_close(perfect, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(clean(pipe, noisy, times, perfect), pictures, rtol=1e-3, atol=1e-3)
    end = step_back(pipe, noisy, times, torch.full_like(times, -1), perfect)
    torch.testing.assert_close(end, pictures, rtol=1e-3, atol=1e-3)


def test_time_grid_refuses_what_the_schedule_lacks(pipe):
    assert time_grid(pipe, 4) == [76, 51, 26, 1]
    with pytest.raises(ValueError, match="from 1 to 100, got 101"):
        time_grid(pipe, 101)


def test_a_pool_has_the_goals_of_the_other_prompt(pipe):
    asked, wanted, empty = (conditions(pipe, texts) for texts in (["star", "red"], ["circle", "blue"], [""]))
    pool = Maker(pipe, empty, Way(2, 2.0), 3, seeded(), lambda count: None).make(asked, wanted, 2)
    assert pool.prompts.tolist() == [0, 1] * 3
    with torch.no_grad():
        torch.testing.assert_close(pool.goal, predict(pipe, pool.noisy, pool.times, wanted.rows(pool.prompts)))
        assert not torch.allclose(pool.goal, predict(pipe, pool.noisy, pool.times, asked.rows(pool.prompts)))


def test_contexts_put_the_concept_where_the_anchor_stood():
    assert contexts(STAR, ("a {}",)) == [("a star", "a circle"), ("a red star", "a red circle")]
    style = Concept("velkin", kind="style", preserve=["a moon", "a cat"])
    pairs = contexts(style, "auto")
    assert ("velkin", "") in pairs
    assert ("a moon in the style of velkin", "a moon") in pairs
    assert ("a cat by velkin", "a cat") in pairs
    assert all("velkin" in prompt and "velkin" not in other for prompt, other in pairs)


def test_kept_prompts_name_no_erased_concept():
    near, others = kept_prompts([STAR, Concept("ring", anchor="moon", preserve=["a star", "art"])], ("a {}",))
    assert near == ["a circle", "a moon", "a red circle"]
    assert others == ["blue", "art", ""]


def test_soft_prompts_attack_and_start_anew(pipe):
    bank = SoftBank(pipe, 4, (1, 3), seeded())
    assert bank.condition(torch.arange(4)).states.shape == (4, 16, 32)
    adam = torch.optim.Adam([bank.vectors], lr=0.05)
    noisy, times, goal = (torch.randn(4, 4, 8, 8, generator=seeded(i)) for i in range(3))
    times = torch.tensor([3, 30, 60, 90])
    losses = []
    for _ in range(12):
        guess = predict(pipe, noisy, times, bank.condition(torch.arange(4)))
        losses.append(functional.mse_loss(guess, goal))
        (bank.vectors.grad,) = torch.autograd.grad(losses[-1], [bank.vectors])
        adam.step()
    assert losses[-1] < losses[0]
    # A soft prompt of one token does not use the other places.
    assert not bank.vectors.grad[0, 1:].any()
    assert bank.vectors.grad[1].abs().amax(dim=-1).all()
    before = bank.vectors.detach().clone()
    bank.restart(adam, 0, seeded(3))
    moved = (bank.vectors - before).abs().amax(dim=(1, 2)) > 0
    assert moved.tolist() == [True, False, True, False]
    assert [bool(row.any()) for row in adam.state[bank.vectors]["exp_avg"]] == [False, True, False, True]


def test_training_stops_when_the_loss_no_longer_falls(pipe, capsys):
    get_eraser("esd", **ESD | {"lr": 1e-6, "iterations": 50, "patience": 2, "batch": 4}).fit(pipe, STAR)
    assert "iterations: the loss fell by less than 1 % in 2" in capsys.readouterr().err
    get_eraser("esd", **ESD).fit(pipe, STAR)
    assert "esd: 6 iterations; 8 denoiser calls, 6 with gradients, 2 texts encoded" in capsys.readouterr().err


def test_checkpoints_that_cannot_be_used_are_refused(pipe, tmp_path):
    eraser = get_eraser("esd", **ESD)
    path = tmp_path / "checkpoint"
    path.write_bytes(b"not one")
    with pytest.raises(ValueError, match="got a damaged file"):
        eraser.fit(pipe, STAR, checkpoint=path, progress=False)
    with pytest.raises(FileNotFoundError, match="create it first"):
        eraser.fit(pipe, STAR, checkpoint=tmp_path / "no" / "checkpoint", progress=False)


def test_checkpoints_are_written_now_and_then(pipe, tmp_path):
    path = tmp_path / "checkpoint"
    get_eraser("esd", **ESD).fit(pipe, STAR, checkpoint=path, progress=False)
    assert not path.exists()
    get_eraser("esd", **ESD).fit(pipe, STAR, checkpoint=path, **NOW)
    assert path.is_file()
    training.discard_checkpoint(path)
    assert not path.exists()


@pytest.mark.parametrize("option", [{"iterations": 0}, {"lr": 0.0}, {"rank": -1}, {"patience": -1}])
def test_bad_options_are_refused(option):
    with pytest.raises(ValueError, match=rf"{next(iter(option))}.*got {next(iter(option.values()))}"):
        get_eraser("esd", **option)


def test_gradient_checkpointing_changes_nothing_and_is_switched_off_again(pipe):
    patches = [
        get_eraser("esd", **ESD, gradient_checkpointing=flag).fit(pipe, STAR, progress=False) for flag in (False, True)
    ]
    assert not pipe.unet.is_gradient_checkpointing
    for name, tensor in patches[0].tensors.items():
        torch.testing.assert_close(tensor, patches[1].tensors[name], rtol=1e-2, atol=1e-3)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at weights that stand in for parameters
def test_compiled_models_train_to_the_same_patch(pipes):
    pipe, compiled = pipes("sd1"), pipes("sd1")
    options = ESD | {"iterations": 2}
    plain = get_eraser("esd", **options).fit(pipe, STAR, progress=False)
    compiled.unet.mid_block.compile(backend="eager")
    compiled.unet = torch.compile(compiled.unet, backend="eager", disable=True)
    check_drawable(compiled)
    assert get_eraser("esd", **options).fit(compiled, STAR, progress=False).digest == plain.digest
