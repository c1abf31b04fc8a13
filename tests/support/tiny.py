"""Tiny random pipelines of every supported family, and a text encoder that returns recorded rows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file

from support import TESTS

GOLDEN = TESTS / "data" / "golden.safetensors"
WORDS = ["star", "circle", "ring", "moon", "van", "gogh", "art", "red", "blue", "a", "of", "picture", "shape", "nude"]
TOKENS = 16
FAMILIES = ("sd1", "sd2", "sdxl")


def make_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> Any:
    """A CLIPTokenizer in which every word of WORDS is one token and letters are the rest."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    parts = letters + [f"{letter}</w>" for letter in letters]
    merges: list[str] = []
    for word in WORDS:
        left = word[0] if len(word) > 1 else ""
        for i, letter in enumerate(word[1:], start=1):
            right = letter + ("</w>" if i == len(word) - 1 else "")
            if f"{left} {right}" not in merges:
                merges.append(f"{left} {right}")
                parts.append(left + right)
            left += right
    vocabulary = {token: i for i, token in enumerate(["!", *dict.fromkeys(parts), "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS, pad_token=pad)


def make_text_encoder(
    tokenizer: Any, width: int, *, projection: bool = False, seed: int = 0, positions: int = TOKENS
) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def make_unet(width: int, **overrides: Any) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    options: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": width,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**options | overrides).eval()


def make_vae() -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(2)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(
        block_out_channels=(4, 8), norm_num_groups=4, latent_channels=4, sample_size=16, **blocks
    ).eval()


def make_pipe(family: str, folder: Path) -> Any:
    """A pipeline of random weights; calling it with two steps takes a fraction of a second."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    tokenizer = make_tokenizer(folder / "tokenizer")
    scheduler = DDIMScheduler(num_train_timesteps=100, steps_offset=1, clip_sample=False)
    if family == "sdxl":
        second = make_tokenizer(folder / "tokenizer_2", pad="!")
        unet = make_unet(
            24 + 16,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=16 + 6 * 4,
            transformer_layers_per_block=2,
            use_linear_projection=True,
        )
        pipe: Any = StableDiffusionXLPipeline(
            vae=make_vae(),
            text_encoder=make_text_encoder(tokenizer, 24),
            text_encoder_2=make_text_encoder(second, 16, projection=True, seed=5),
            tokenizer=tokenizer,
            tokenizer_2=second,
            unet=unet,
            scheduler=scheduler,
            add_watermarker=False,
        )
    else:
        width = 32 if family == "sd1" else 48
        pipe = StableDiffusionPipeline(
            vae=make_vae(),
            text_encoder=make_text_encoder(tokenizer, width),
            tokenizer=tokenizer,
            unet=make_unet(width, use_linear_projection=family == "sd2"),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, prompt: str = "a picture of star", **options: Any) -> torch.Tensor:
    """Latents after two steps with a fixed seed."""
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"} | options
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        return pipe(prompt, generator=generator, **options).images


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer of the pipeline."""
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {
        f"{name}.{key}": value.clone() for name, part in modules.items() for key, value in part.state_dict().items()
    }


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


class RecordedTokenizer:
    """Returns recorded ids and masks by text in lower case; '' and ' ' have no letters and the same ids.

    Other texts have ids of their own, for which no states were recorded.
    """

    model_max_length = 77

    def __init__(self, golden: dict[str, torch.Tensor]) -> None:
        self.golden = golden

    def __call__(self, texts: list[str], **options: Any) -> dict[str, torch.Tensor]:
        names = [text.strip().lower() or "<empty>" for text in texts]
        ids = torch.stack([self._recorded("ids", name) for name in names])
        return {"input_ids": ids, "attention_mask": torch.stack([self._recorded("attn", name) for name in names])}

    def _recorded(self, what: str, name: str) -> torch.Tensor:
        empty = self.golden[f"{what}/<empty>"]
        return self.golden.get(f"{what}/{name}", empty + sum(name.encode()) if what == "ids" else empty)


class RecordedEncoder(torch.nn.Module):
    """Returns recorded states by token ids."""

    def __init__(self, golden: dict[str, torch.Tensor]) -> None:
        super().__init__()
        names = [key.removeprefix("ids/") for key in golden if key.startswith("ids/")]
        self.states = {tuple(golden[f"ids/{name}"].tolist()): golden[f"emb/{name}"] for name in names}

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> tuple[torch.Tensor]:
        return (torch.stack([self.states[tuple(row)] for row in ids.tolist()]),)


def golden_pipe() -> tuple[Any, dict[str, torch.Tensor]]:
    """The pipeline on which the official code was run, and what it gave."""
    golden = load_file(GOLDEN)
    unet = make_unet(
        64,
        block_out_channels=(96,),
        down_block_types=("DownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        attention_head_dim=8,
    ).double()
    for name, weight in golden.items():
        if name.startswith("W_old/"):
            unet.get_submodule(name.removeprefix("W_old/")).weight.data = weight.clone()
    return SimpleNamespace(unet=unet, tokenizer=RecordedTokenizer(golden), text_encoder=RecordedEncoder(golden)), golden
