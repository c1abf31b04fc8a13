"""Co-Erasing: ESD with pictures beside the text, through an adapter that is gone when the patch is there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.adapters import tiny_adapter
from support.tiny import same, weights
from support.trained import family_pipe

from erasers import Concept, get_eraser
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.denoiser import predict
from erasers.diffusion.image_adapter import ImageAdapter
from erasers.diffusion.latent_bank import Way, sample_bank
from erasers.methods.co_erasing import CoErasing, Seen, unlearning
from erasers.training.loop import TrainedEraser

STAR = Concept("star", anchor="circle", aliases=["pentagram"])
MOON = Concept("moon", anchor="ring")
QUICK: dict[str, Any] = {
    "adapter": tiny_adapter(),
    "images": 3,
    "iterations": 30,
    "lr": 1e-3,
    "steps": 2,
    "pictures": 2,
    "batch": 4,
    "drawn_by": "frozen",
    "train_method": "x",
}


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the loop gets of every training, in place of being run."""
    trainings: list[Any] = []

    def run(self: Any, training: Any, *_: Any) -> str:
        trainings.append(training)
        training.step(0)
        return ""

    monkeypatch.setattr(TrainedEraser, "_run", run)
    return trainings


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """Those of every training."""
    seen: list[Seen] = []
    beside = CoErasing.beside

    def watched(self: CoErasing, *args: Any) -> Seen:
        seen.append(beside(self, *args))
        return seen[-1]

    monkeypatch.setattr(CoErasing, "beside", watched)
    return seen


def first_losses(pipe: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[dict[str, float]]:
    """What the first iterations show."""
    shown: list[dict[str, float]] = []

    def run(self: Any, training: Any, *_: Any) -> str:
        shown.extend(dict(training.step(number)) for number in range(self.iterations))
        return ""

    with monkeypatch.context() as patched:
        patched.setattr(TrainedEraser, "_run", run)
        get_eraser("co_erasing", **QUICK | options).fit(pipe, STAR, progress=False)
    return shown


def test_the_patch_has_weights_of_the_plain_unet_alone(pipe):
    plain, before = dict(pipe.unet.named_parameters()).keys(), weights(pipe)
    patch = get_eraser("co_erasing", **QUICK | {"iterations": 4}).fit(pipe, STAR, progress=False)
    names = {name.removeprefix("dense/unet.") for name in patch.tensors}
    assert names
    assert names <= plain
    assert all(".attn2." in name for name in names)
    assert not any("_ip" in name or "processor" in name for name in names)
    assert same(before, weights(pipe))
    with patch.applied(pipe):
        pipe.unet.load_state_dict(pipe.unet.state_dict(), strict=True)
        assert pipe.unet.encoder_hid_proj is None


def test_with_a_scale_of_0_the_loss_is_that_of_esd(pipe):
    named, empty = conditions(pipe, ["star"]), unprompted(pipe)
    bank = sample_bank(pipe, named, empty, Way(2, 3.0), rounds=2, generator=torch.Generator().manual_seed(9))
    adapter = ImageAdapter(pipe, tiny_adapter())
    tokens = torch.randn(len(bank), 4, 32, generator=torch.Generator().manual_seed(2))
    pictured = named.expand(len(bank))._replace(image=tokens)
    student = pipe.unet.conv_out.weight
    esd = unlearning(pipe, bank, named.expand(len(bank)), bank.conditional, 1.0)
    expected, losses = get_eraser("esd", batch=len(bank)).loss(pipe, *heard_and_student(named, empty, bank)), {}
    with torch.no_grad():
        student.mul_(1.5)
        losses["text"], losses["esd"] = esd.make(0), expected.make(0)
        student.div_(1.5)
        for scale in (0.0, 1.0):
            with adapter.placed(pipe, scale=scale, projected=True):
                said = predict(pipe, bank.latents, bank.times, pictured)
                loss = unlearning(pipe, bank, pictured, said, 1.0)
                student.mul_(1.5)
                losses[scale] = loss.make(0)
                student.div_(1.5)
    torch.testing.assert_close(losses["esd"], losses["text"], rtol=0, atol=0)
    torch.testing.assert_close(losses[0.0], losses["esd"], rtol=1e-5, atol=0)
    assert not torch.allclose(losses[1.0], losses["esd"], rtol=1e-3)


def heard_and_student(named: Condition, empty: Condition, bank: Any) -> tuple[Any, Any, Any]:
    from erasers.training.ways import Heard

    return Heard(named, named, named, empty), bank, None


def test_pictures_change_what_is_learned_after_the_text_alone(pipe, monkeypatch):
    whole, half, silent = (
        [shown["loss"] for shown in first_losses(pipe, monkeypatch, iterations=6, text_share=share, scale=scale)]
        for share, scale in ((1.0, 1.0), (0.5, 1.0), (0.5, 0.0))
    )
    assert half[:3] == whole[:3]
    assert all(one != other for one, other in zip(half[3:], whole[3:], strict=True))
    # The picture of an iteration is drawn by chance, too: the fourth has the same latents.
    assert silent[3] == pytest.approx(whole[3], rel=1e-4)


def test_prediction_with_a_picture_goes_away_from_the_concept(pipe, pictures):
    options = QUICK | {"text_share": 0.0, "train_method": "all", "iterations": 40}
    patch = get_eraser("co_erasing", **options).fit(pipe, MOON, progress=False)
    named, empty = conditions(pipe, ["moon"]), unprompted(pipe)
    bank = sample_bank(pipe, named, empty, Way(2, 3.0), rounds=3, generator=torch.Generator().manual_seed(9))
    pictured = pictures[0].beside(named, bank.prompts, refine=True)

    @torch.no_grad()
    def said() -> torch.Tensor:
        with pictures[0].adapter.placed(pipe, projected=True):
            return predict(pipe, bank.latents, bank.times, pictured)

    before = said()
    with patch.applied(pipe):
        moved = said() - before
    away = -2 * (before - bank.empty)
    assert float((moved * away).sum() / (moved.norm() * away.norm())) > 0.5


def test_the_adapter_does_not_change_and_is_frozen(pipe, stopped, monkeypatch):
    adapters: list[ImageAdapter] = []
    made = ImageAdapter.__init__

    def watched(self: ImageAdapter, *args: Any) -> None:
        made(self, *args)
        adapters.append(self)
        self.copies = [value.clone() for module in self.modules() for value in module.parameters()]  # type: ignore[attr-defined]

    monkeypatch.setattr(ImageAdapter, "__init__", watched)
    with pytest.raises(ValueError, match="training to change the weights|none that moved"):
        get_eraser("co_erasing", **QUICK | {"text_share": 0.0, "lr": 1e-12}).fit(pipe, STAR, progress=False)
    (adapter,) = adapters
    values = [value for module in adapter.modules() for value in module.parameters()]
    assert values
    assert all(torch.equal(value, copy) for value, copy in zip(values, adapter.copies, strict=True))  # type: ignore[attr-defined]
    assert not any(value.requires_grad or value.grad is not None for value in values)
    assert adapter.encoder is None


def test_a_prompt_is_shown_pictures_of_its_own_concept():
    tokens = torch.arange(6.0)[:, None, None].expand(6, 4, 8)
    owners = torch.tensor([0, 1, 1])
    seen = Seen(None, tokens, owners, 3, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    named, prompts = Condition(torch.randn(3, 5, 8)), torch.tensor([0, 1, 2] * 20)
    shown = seen.beside(named, prompts, refine=False)
    assert torch.equal(shown.states, named.states[prompts])
    assert {(int(prompt) > 0, float(image[0, 0])) for prompt, image in zip(prompts, shown.image, strict=True)} == {
        (owner, float(3 * owner + number)) for owner in (False, True) for number in range(3)
    }
    refined = seen.beside(named, prompts, refine=True).image
    assert (refined.amax(1) <= named.states[prompts].amax(1)).all()


def test_every_concept_has_pictures_of_its_own(pipe, stopped, pictures):
    with pytest.raises(ValueError, match="none that moved"):
        get_eraser("co_erasing", **QUICK | {"lr": 1e-12}).fit(pipe, [STAR, MOON], progress=False)
    assert pictures[0].owners.tolist() == [0, 0, 1]
    assert len(pictures[0].tokens) == 6


def test_nothing_is_drawn_without_an_adapter(pipe):
    pipe.unet.register_forward_pre_hook(lambda *_: pytest.fail("the denoiser was asked"))
    for adapter, error in (("auto", ValueError), ("nowhere.safetensors", FileNotFoundError)):
        with pytest.raises(error, match="expected an IP-Adapter"):
            get_eraser("co_erasing", **QUICK | {"adapter": adapter}).fit(pipe, STAR, progress=False)


def test_other_families_and_values_are_refused(tmp_path):
    with pytest.raises(TypeError, match="whose UNet takes an IP-Adapter"):
        get_eraser("co_erasing").fit(family_pipe("sd3", tmp_path), STAR, progress=False)
    wrong = {"text_share from 0 to 1": {"text_share": 1.5}, "images": {"images": 0}, "scale": {"scale": -1.0}}
    for message, option in wrong.items():
        with pytest.raises(ValueError, match=message):
            get_eraser("co_erasing", **option)


def test_the_record_has_no_folder_of_the_users():
    assert get_eraser("co_erasing", adapter="/home/me/ip-adapter_sd15.safetensors").config()["adapter"] == (
        "ip-adapter_sd15.safetensors"
    )
    assert get_eraser("co_erasing").config()["adapter"] == "auto"
