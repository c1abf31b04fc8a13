"""Everything runs on an accelerator as it does on the CPU, as far as the places of tensors say."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.accelerator import CPU, CUDA, Accelerator, WrongDevice
from support.adapters import tiny_adapter
from support.attacking import ASKS, Says
from support.attacking import draw as draw_pictures
from support.saes import OPTIONS as SAES
from support.saes import save_saes
from support.selection import only, rows
from support.tiny import draw
from support.trained import METHODS, RANKS, STAR
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTForImageClassification

from erasers import get_eraser, list_erasers
from erasers.attacks import get_attack, list_attacks
from erasers.attacks.running import attack_prompts
from erasers.cli import app as cli
from erasers.cli import model as cli_model
from erasers.diffusion.latent_bank import Way
from erasers.eraser import eraser_class
from erasers.judges import get_judge
from erasers.sae.autoencoder import load_sae
from erasers.sae.denoiser_block import find_denoiser_block
from erasers.sae.rows import DenoiserRows
from erasers.sae.training import SAETraining, _Run, train_sae

pytestmark = pytest.mark.filterwarnings("ignore:the values of .* are turned:UserWarning")
"""What `oce` says of its scales; its own tests ask for it."""
OTHERS: dict[str, dict[str, Any]] = {
    "concept_lancet": {"captions": 5, "everyday": False, "templates": ("{}", "a {}")},
    "adavd": {"everyday": False, "templates": ("{}", "a {}")},
    "itd": SAES,
    "speed": {},
    "leace": {},
    "oce": {},
    "dp": {},
    "realera": {"beyond": 4, "mined": 2},
    "rece": {},
    "uce": {},
}
ATTACKS: dict[str, dict[str, Any]] = {
    "cce": {"tokens": 2, "steps": 2, "batch": 2, "pictures": 2},
    "image_prompt": {"adapter": tiny_adapter(), "images": 2},
    "mma": {"k": 3, "steps": 2, "batch": 8, "top": 4, "encoder": "attacked"},
    "noise": {"etas": (1.0,), "scales": (1.0,)},
    "p4d": {"k": 3, "steps": 2, "every": 1, "bank": 4},
    "random_prefix": {"images": 2},
    "random_text": {"images": 2, "k": 3},
    "relearning": {"steps": 2, "batch": 2, "rank": 2, "pictures": 2},
    "state_inversion": {"steps": 2, "batch": 2, "pictures": 2},
    "tina": {"steps": 2, "rounds": 1},
    "ring_a_bell": {"k": 3, "population": 6, "generations": 2, "encoder": "attacked"},
    "unlearn_diff_atk": {"k": 2, "timesteps": 2, "steps": 1},
    "words": {"synonyms": ("moon",), "templates": ("a {}",)},
}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda here, there: here + there,
        lambda here, there: there * here.unsqueeze(0),
        lambda here, there: here * there.sum(),
        lambda here, there: here[there.long()],
        lambda here, there: torch.cat([here.sum()[None], there]),
        lambda here, there: torch.stack([here.sum(), there.sum()]),
        lambda here, there: torch.nn.functional.linear(there, torch.ones(3, 3)),
        lambda here, there: there.numpy(),
        lambda here, there: there.normal_(generator=torch.Generator()),
        lambda here, there: torch.randn(3, generator=torch.Generator(), device="cuda"),
        lambda here, there: torch.multinomial(there, 1, generator=torch.Generator()),
        lambda here, there: torch.autograd.grad((there.requires_grad_() * 2).sum(), [there])[0] + here,
    ],
)
def test_the_accelerator_refuses_what_a_real_one_would(wrong):
    with Accelerator():
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        with pytest.raises(WrongDevice):
            wrong(here, there)


def test_the_accelerator_takes_what_a_real_one_would():
    with Accelerator():
        here, there = torch.ones(3), torch.ones(3).to("cuda", torch.float64)
        assert (there.device, here.device, there.dtype) == (CUDA, CPU, torch.float64)
        assert (there * here.sum()).device == there[here.long() - 1].device == there[:1].view(1, 1).device == CUDA
        assert torch.zeros_like(there).device == there.new_ones(2).device == there.detach().device == CUDA
        assert there.cpu().device == there.to(here).device == torch.as_tensor(there, device="cpu").device == CPU
        assert float(there.sum()) == 3.0
        here.copy_(there)
        weight = torch.nn.Parameter(there)
        (slope,) = torch.autograd.grad((weight.square() * 3).sum(), [weight])
        assert (weight.device, slope.device) == (CUDA, CUDA)
        leaf = torch.ones(2, requires_grad=True)
        leaf.to("cuda").sum().backward()
        assert leaf.grad.device == CPU
    assert there.device == CPU


def options_of(name: str, pipe: Any, folder: Path) -> dict[str, Any]:
    found = (METHODS | OTHERS)[name]
    found = found | ({"iterations": 3, "lr": 1e-3} if name in METHODS else {})
    return found | ({"sae": save_saes(pipe, folder)} if name == "itd" else {})


OTHERS_HERE = [name for name in list_erasers() if name not in METHODS and eraser_class(name).everywhere]
CASES = [*RANKS, *((name, 0) for name in OTHERS_HERE)]


@pytest.mark.parametrize(
    ("name", "rank"), rows(CASES, default=lambda name, rank: rank == 0 and name in ("esd", "itd", "rece", "uce"))
)
def test_methods(pipe, name, rank, tmp_path):
    options = options_of(name, pipe, tmp_path) | ({"rank": rank} if name in METHODS else {})
    expected = get_eraser(name, **options).fit(pipe, STAR, progress=False)
    with expected.applied(pipe):
        picture = draw(pipe)
    with Accelerator():
        pipe.to("cuda")
        patch = get_eraser(name, **options).fit(pipe, STAR, progress=False)
        with patch.applied(pipe):
            found = draw(pipe).cpu()
        assert {tensor.device for tensor in patch.tensors.values()} == {CPU}
        pipe.to("cpu")
    assert patch.tensors.keys() == expected.tensors.keys()
    for key, tensor in expected.tensors.items():
        torch.testing.assert_close(patch.tensors[key], tensor, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(found, picture, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", only(list_attacks(), "p4d", "words"))
def test_attacks(pipe, name):
    attack = get_attack(name, **ATTACKS[name])

    def outcomes() -> Any:
        ready = attack.prepare(pipe, ASKS, draw=draw_pictures, generator=torch.Generator().manual_seed(0))
        generators = [torch.Generator().manual_seed(number) for number in range(len(ASKS))]
        options: dict[str, Any] = {"draw": draw_pictures, "generators": generators, "replicate": 1}
        return attack_prompts(attack, pipe, ASKS, ready, Says(False), **options)

    expected = outcomes()
    with Accelerator():
        pipe.to("cuda")
        found = outcomes()
        pipe.to("cpu")
    assert found == expected
    assert [one.picture.tobytes() for one in found] == [one.picture.tobytes() for one in expected]


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> set[torch.device]:
    """Where autoencoders are trained."""
    found, step = set(), _Run.step

    def watched(self: Any, rows: torch.Tensor) -> str:
        found.update({rows.device, self.sae.encoder.device, self.silent.device})
        return step(self, rows)

    monkeypatch.setattr(_Run, "step", watched)
    return found


@pytest.mark.full
def test_autoencoders_are_trained_where_they_are_told(devices, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_model, "pick_device", lambda device: device)
    arguments = ["sae", "train", "--model", "shapes", "--device", "cuda", "--dtype", "float32", "--out", "x"]
    arguments += ["--steps", "30", "--features", "64", "--k", "4", "--batch", "32", "--checkpoint", "half"]
    with Accelerator():
        assert cli.run(arguments) == 0
    assert devices == {CUDA}
    assert load_sae("x")[0].encoder.device == CPU


def test_autoencoders_of_a_denoiser_are_the_same_everywhere(pipe, devices):
    training = SAETraining(features=8, k=2, steps=4, prompts=2, auxiliary=2, dead_after=60)

    def trained() -> Any:
        rows = DenoiserRows(find_denoiser_block(pipe, "mid_block"), ["a star", "a ring", "art"], 2, 0, Way(2, 2.0))
        return train_sae(rows, training)

    expected = trained()
    assert devices == {CPU}
    devices.clear()
    with Accelerator():
        pipe.to("cuda")
        found = trained()
        pipe.to("cpu")
    assert devices == {CUDA}
    assert found.quality == expected.quality
    values = found.sae.state_dict()
    assert all(torch.equal(values[name], value) for name, value in expected.sae.state_dict().items())


def classifier(folder: Path) -> Any:
    config = ViTConfig(
        hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1, image_size=2, patch_size=2,
        id2label={0: "red", 1: "blue"}, label2id={"red": 0, "blue": 1},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    processor(folder, "ViTImageProcessor", size={"height": 2, "width": 2})
    return lambda device: get_judge("classifier", model=folder, device=device)


def q16(folder: Path) -> Any:
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16, patch_size=8,
        projection_dim=768,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    processor(folder, "CLIPImageProcessor", size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    save_file({"prompts": torch.randn(2, 768)}, folder / "prompts.safetensors")
    return lambda device: get_judge("q16/vitl14", model=folder, prompts=folder / "prompts.safetensors", device=device)


def clip(folder: Path) -> Any:
    pytest.importorskip("open_clip")
    return lambda device: get_judge("clip_zeroshot/shapes", device=device)


def processor(folder: Path, kind: str, **more: Any) -> None:
    settings = {"image_processor_type": kind, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | more))


@pytest.mark.parametrize(
    ("make", "wants"),
    [
        (lambda folder: lambda device: get_judge("oracle", device=device), {"object": "star"}),
        (classifier, {"object": "red"}),
        (q16, {"unsafe": "inappropriate"}),
        (clip, {"object": "star"}),
    ],
    ids=["oracle", "classifier", "q16", "clip_zeroshot"],
)
def test_judges(make, wants, tmp_path):
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    asks = [SimpleNamespace(wants=wants)] * 2
    judge = make(tmp_path)
    expected = judge("cpu").judge(pictures, asks)
    assert None not in [verdict.value for verdict in expected]
    with Accelerator():
        found = judge("cuda").judge(pictures, asks)
    assert [verdict.value for verdict in found] == [verdict.value for verdict in expected]
    assert [one.probability for one in found] == pytest.approx([one.probability for one in expected], rel=1e-4)
