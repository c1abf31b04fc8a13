import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from erasers.worlds.shapes import CLIP_DIR, render, vocabulary
from erasers.worlds.shapes.scenes import sample_scenes


def test_the_weights_fit_their_description() -> None:
    config = json.loads((CLIP_DIR / "open_clip_config.json").read_text())["model_cfg"]
    with safe_open(CLIP_DIR / "open_clip_model.safetensors", framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes["token_embedding.weight"] == (config["text_cfg"]["vocab_size"], config["text_cfg"]["width"])
    assert shapes["text_projection"] == (config["text_cfg"]["width"], config["embed_dim"])
    assert shapes["visual.proj"] == (config["vision_cfg"]["width"], config["embed_dim"])


@pytest.mark.clip
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["object", "colour", "style"])
def test_zero_shot(kind: str) -> None:
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{CLIP_DIR}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{CLIP_DIR}")
    generator = torch.Generator().manual_seed(31)
    scenes = sample_scenes(300, generator)
    words = {"object": vocabulary.OBJECTS, "colour": vocabulary.COLOURS, "style": vocabulary.STYLES[1:]}[kind]
    if kind == "style":
        scenes = scenes[scenes.style > 0]
        texts, right = [f"a picture in the style of {word}" for word in words], scenes.style - 1
    else:
        texts, right = [f"a {word}" if kind == "object" else f"a {word} shape" for word in words], getattr(scenes, kind)
    pictures = ((render.render(scenes, generator) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    images = torch.stack([preprocess(Image.fromarray(picture)) for picture in pictures])
    with torch.no_grad():
        similarity = model.encode_image(images, normalize=True) @ model.encode_text(tokenizer(texts), normalize=True).T
    least = {"object": 0.8, "colour": 0.98, "style": 0.98}[kind]
    assert float((similarity.argmax(1) == right).float().mean()) >= least
