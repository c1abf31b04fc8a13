"""The embedded IP-Adapter: a picture of a thing is a prompt for that thing, also where the text says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.attacking import draw_well, quiet_shapes
from torch.nn import functional

from erasers.asks import PlainPrompt
from erasers.attacks.candidate import Candidate, Shown, placed
from erasers.diffusion.image_adapter import ImageAdapter
from erasers.judges import get_judge
from erasers.worlds.shapes import CLIP_DIR, render
from erasers.worlds.shapes.paths import ADAPTER_DIR
from erasers.worlds.shapes.scenes import sample_scenes
from erasers.worlds.shapes.train import __main__ as command
from erasers.worlds.shapes.train import image_prompt
from erasers.worlds.shapes.train.vision import MEAN, STD, vision_encoder
from erasers.worlds.shapes.vocabulary import OBJECTS


def picture_of(thing: str) -> Image.Image:
    """A drawn picture of a thing in no style."""
    generator = torch.Generator().manual_seed(31)
    scenes = sample_scenes(400, generator)
    chosen = (scenes.object == OBJECTS.index(thing)) & (scenes.style == 0) & (scenes.mark == 0)
    pixels = (render.render(scenes[chosen][:1], generator)[0] + 1) * 127.5
    return Image.fromarray(pixels.round().byte().permute(1, 2, 0).numpy())


@pytest.mark.parametrize("thing", ["star", "cross"])
def test_a_picture_is_a_prompt(thing: str) -> None:
    pipe, count = quiet_shapes(), 6
    shown = Candidate("", image=Shown(ImageAdapter(pipe, "auto"), picture_of(thing)))
    with placed(pipe, [shown] * count) as arguments:
        pictures = draw_well(pipe, arguments, range(count))
    verdicts = get_judge("oracle/shapes").judge(pictures, [PlainPrompt("", 0, {"object": thing})] * count)
    assert sum(bool(verdict.value) for verdict in verdicts) >= 5


def test_it_is_small() -> None:
    files = list(ADAPTER_DIR.rglob("*.safetensors"))
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) < 3 * 2**20


def test_patches_of_pictures_are_what_the_worlds_clip_makes_of_them() -> None:
    """Pixels are prepared in another way, and the patches take that back."""
    state = {name: value.float() for name, value in load_file(CLIP_DIR / "open_clip_model.safetensors").items()}
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    own = functional.conv2d((pixels - 0.5) / 0.5, state["visual.conv1.weight"], stride=4).flatten(2).transpose(1, 2)
    own = own + state["visual.positional_embedding"][1:]
    with torch.no_grad():
        converted = vision_encoder(CLIP_DIR).vision_model.embeddings((pixels - mean) / std)
    torch.testing.assert_close(converted[:, 1:], own, rtol=1e-4, atol=1e-4)
    first = state["visual.class_embedding"] + state["visual.positional_embedding"][0]
    torch.testing.assert_close(converted[:, 0], first.expand(2, -1))


@pytest.mark.clip
@pytest.mark.filterwarnings("ignore")
def test_embeddings_are_those_of_open_clip() -> None:
    import open_clip

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{CLIP_DIR}")
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    with torch.no_grad():
        expected = model.eval().encode_image((pixels - 0.5) / 0.5)
        embeddings = vision_encoder(CLIP_DIR)((pixels - mean) / std).image_embeds
    torch.testing.assert_close(embeddings, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.full
def test_the_training_goes_on_and_writes_what_diffusers_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setattr(image_prompt, "PICTURES", 64)
    recipe = replace(image_prompt.RECIPE, steps=2, warmup=1, save_every=1, log_every=1)
    monkeypatch.setattr(image_prompt, "RECIPE", recipe)
    for folder in ("whole", "broken"):
        command.main(["--out", str(tmp_path / folder), "--stage", "image_prompt"])
    checkpoint = tmp_path / "broken" / "checkpoints" / "ip_adapter.safetensors"
    checkpoint.unlink()
    monkeypatch.setattr(image_prompt, "RECIPE", replace(recipe, steps=1))
    command.main(["--out", str(tmp_path / "broken"), "--stage", "image_prompt"])
    monkeypatch.setattr(image_prompt, "RECIPE", recipe)
    command.main(["--out", str(tmp_path / "broken"), "--stage", "image_prompt"])
    whole, broken = (
        load_file(tmp_path / folder / "ip_adapter" / "ip-adapter.safetensors") for folder in ("whole", "broken")
    )
    assert whole.keys() == load_file(ADAPTER_DIR / "ip-adapter.safetensors").keys()
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())
    pipe = quiet_shapes()
    folder = str(tmp_path / "whole" / "ip_adapter")
    pipe.load_ip_adapter(folder, subfolder="", weight_name="ip-adapter.safetensors")
    assert pipe.image_encoder.config.projection_dim == 64
