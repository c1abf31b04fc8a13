import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from erasers.judges import get_judge
from erasers.judges.q16 import Q16, read_prompts

ASK = SimpleNamespace(wants={"unsafe": "inappropriate"})
RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (40, 30), "blue")


def build(path: Path, width: int = 768) -> Path:
    """A tiny vision tower of CLIP with embeddings of this width."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16, patch_size=8,
        projection_dim=width, initializer_factor=20.0,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(path)
    processor = {
        **{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}, "resample": 3},
        **{"crop_size": {"height": 16, "width": 16}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
    }
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def prompts(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors that hold red to be appropriate and blue not to be."""
    from erasers.judges.weights import image_processor

    model = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    pixels = image_processor(folder)([RED, BLUE], return_tensors="pt")["pixel_values"]
    file = tmp_path_factory.mktemp("prompts") / "prompts.safetensors"
    with torch.no_grad():
        # Of any length: the cosine counts.
        save_file({"prompts": model(pixel_values=pixels).image_embeds * torch.tensor([[9.0], [0.1]])}, file)
    return file


def test_the_nearer_prompt_decides(folder: Path, prompts: Path) -> None:
    judge = get_judge("q16/vitl14", model=folder, prompts=prompts)
    red, blue = judge.judge([RED, BLUE], [ASK, ASK])
    assert (red.value, blue.value) == (False, True)
    assert [blue] == judge.judge([BLUE], [ASK])
    vectors = read_prompts(prompts)
    odds = (100 * vectors[1] @ vectors.T).softmax(0)
    assert blue.probability == pytest.approx(float(odds[1]), abs=1e-4)
    assert judge.name == "q16/vitl14"


def test_the_order_of_the_prompts_matters(folder: Path, prompts: Path, tmp_path: Path) -> None:
    save_file({"p": read_prompts(prompts).flip(0).contiguous()}, tmp_path / "p.safetensors")
    judge, other = Q16(model=folder, prompts=prompts), Q16(model=folder, prompts=tmp_path / "p.safetensors")
    assert [verdict.value for verdict in other.judge([RED, BLUE], [ASK, ASK])] == [True, False]
    assert judge.fingerprint.digest != other.fingerprint.digest
    assert set(judge.fingerprint.files) == {"config.json", "model.safetensors", "preprocessor_config.json", "prompts"}


def test_it_sees_inappropriate_alone(folder: Path, prompts: Path) -> None:
    with pytest.raises(ValueError, match="cannot see unsafe 'nudity'; it knows unsafe: inappropriate"):
        Q16(model=folder, prompts=prompts).judge([RED], [SimpleNamespace(wants={"unsafe": "nudity"})])


def test_a_model_that_fails_scores_nothing(folder: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Q16(model=folder, prompts=prompts)
    nan = SimpleNamespace(image_embeds=torch.full((1, 768), float("nan")))
    monkeypatch.setattr(judge, "_model", lambda pixel_values: nan)
    assert [verdict.value for verdict in judge.judge([RED], [ASK])] == [None]


def test_a_model_of_another_width_is_refused(tmp_path: Path, prompts: Path) -> None:
    with pytest.raises(ValueError, match="width 768, got 512"):
        Q16(model=build(tmp_path / "model", 512), prompts=prompts)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"a": torch.ones(3, 768)}, r"one tensor \[2, 768\] .* got \[\[3, 768\]\]"),
        ({"a": torch.ones(2, 768), "b": torch.ones(2, 768)}, r"got \[\[2, 768\], \[2, 768\]\]"),
        ({"a": torch.full((2, 768), float("nan"))}, "finite vectors"),
        ({"a": torch.eye(2, 768) * torch.tensor([[1.0], [0.0]])}, "other than zero"),
    ],
)
def test_bad_prompts_are_refused(tensors: dict[str, Any], match: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match=match):
        read_prompts(tmp_path / "p.safetensors")


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "prompts.p").write_bytes(pickle.dumps([[0.0] * 768] * 2))
    with pytest.raises(ValueError, match="convert a pickle once"):
        read_prompts(tmp_path / "prompts.p")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_prompts(tmp_path / "none.safetensors")
