"""Stand-ins for the judges of a report: a CLIP that sees colours, a classifier, a detector."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

from erasers.evaluation.report import judges as report_judges
from erasers.judges import nudenet

COLOURS = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0)}


class ColourClip(torch.nn.Module):
    """Embeds a text as the colours that it names, and a picture as its mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0))

    def encode_text(self, texts: torch.Tensor, normalize: bool) -> torch.Tensor:
        return torch.nn.functional.normalize(texts, dim=-1)

    def encode_image(self, pixels: torch.Tensor, normalize: bool) -> torch.Tensor:
        assert not self.training
        return torch.nn.functional.normalize(pixels.mean((2, 3)), dim=-1)


def tokenize(texts: list[str]) -> torch.Tensor:
    named = [[torch.tensor(rgb) for word, rgb in COLOURS.items() if word in text] for text in texts]
    return torch.stack([sum(some, torch.full((3,), 1e-3)) for some in named])


def preprocess(picture: Image.Image) -> torch.Tensor:
    return torch.tensor(picture.resize((1, 1)).getpixel((0, 0)), dtype=torch.float32)[:, None, None] / 255


def clip_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the stand-in for open_clip, which is installed from now on, takes."""
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": {}}}))
    (folder / "open_clip_model.safetensors").write_bytes(b"weights")
    fake = SimpleNamespace(
        create_model_and_transforms=lambda name, device: (ColourClip(), None, preprocess),
        get_tokenizer=lambda name: tokenize,
    )
    monkeypatch.setitem(sys.modules, "open_clip", fake)
    return folder


def classifier_folder(folder: Path, labels: Sequence[str]) -> Path:
    config = ViTConfig(
        hidden_size=4, intermediate_size=4, num_hidden_layers=0, num_attention_heads=1, image_size=2, patch_size=2,
        id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)},
    )  # fmt: skip
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(folder)
    processor = {
        **{"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 2, "width": 2}},
        **{"resample": 2, "do_rescale": True, "do_normalize": True},
        **{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def install_nudenet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: torch.Tensor) -> None:
    """A detector that gives these scores of every picture."""

    class Session:
        def get_inputs(self) -> Sequence[Any]:
            return [SimpleNamespace(name="images")]

        def run(self, outputs: Any, inputs: Mapping[str, Any]) -> Sequence[Any]:
            return [output.numpy()]

    weights = tmp_path / "stub.onnx"
    weights.write_bytes(b"stub")
    monkeypatch.setattr(nudenet, "installed_weights", lambda: weights)
    monkeypatch.setattr(nudenet, "SHA256", hashlib.sha256(b"stub").hexdigest())
    monkeypatch.setattr(nudenet, "open_session", lambda weights, device: Session())


def installed(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Only these of the judges' modules are installed."""
    monkeypatch.setattr(report_judges, "find_spec", lambda name: object() if name in modules else None)
