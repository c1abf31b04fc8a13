"""Where text enters each family of diffusers models, as a table: the only place that knows families.

A *port* is a linear map through which text enters the denoiser. Text enters in one of three ways:

* `cross`: keys and values of cross-attention read the text states (or a token-wise function of them) in every block.
* `joint`: one embedder reads the text states; from there on blocks mix text and picture.
* `single`: one embedder, after which text and picture are one sequence.

Ports that read each token of the prompt unmixed can be edited exactly. Behind an embedder, the keys and values that
joint blocks have for their text half (`joint`) read states that earlier blocks have mixed: editing them is a heuristic.
A vector that summarises the prompt may enter beside the tokens (`pooled`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


class UnsupportedPipeline(TypeError):
    """A pipeline, or a state of one, that is not supported; the message names what is, and the way out."""


@dataclass(frozen=True)
class Source:
    """One sequence of text states.

    Args:
        encoders: Attributes of the text encoders; the first one's tokens count the rows.
        through: Modules of the denoiser that its rows pass before they join the others.
        optional: The pipeline runs without it.
        left_out: Last layers of the encoders that have no say in these states, in pipelines that know all of them.
    """

    encoders: tuple[str, ...]
    through: tuple[str, ...] = ()
    optional: bool = False
    left_out: int = 0


@dataclass(frozen=True)
class Pooled:
    """A linear map that reads one vector a prompt.

    Args:
        port: Pattern of the layer.
        through: Modules between that vector and the layer.
        output: Where `encode_prompt` returns the vector; None: it is the mean of the prompt's states.
        encoders: Attributes of the text encoders that make it, all layers of them and their projections.
    """

    port: str
    through: tuple[str, ...] = ()
    output: int | None = None
    encoders: tuple[str, ...] = ("text_encoder",)


@dataclass(frozen=True)
class Family:
    """One class of denoisers.

    Args:
        title: What users call it.
        denoiser: Name of the class; subclasses count.
        kind: How text enters.
        text: Pattern of the ports that read each token of the prompt; `block` names what `through` may refer to.
        sources: The text states, in the order in which the denoiser sees them.
        components: Attributes of the pipeline that may hold such a denoiser.
        through: Modules between the text states and these ports, all of them token by token.
        pooled: The port beside the tokens.
        joint: Pattern of keys and values that read mixed states.
        mask: Where `encode_prompt` returns the mask of the tokens that the denoiser sees; None: it sees all.
        padding: What stands where the mask is 0: a parameter of the denoiser, or `zero` for states of zero.
        negative: Where `encode_prompt` returns the states of the negative prompt, if it encodes that by other rules.
        unedited: A way in for text that no port covers.
    """

    title: str
    denoiser: str
    kind: Literal["cross", "joint", "single"]
    text: re.Pattern[str]
    sources: tuple[Source, ...]
    components: tuple[str, ...] = ("transformer",)
    through: tuple[str, ...] = ()
    pooled: Pooled | None = None
    joint: re.Pattern[str] | None = None
    mask: int | None = None
    padding: str = ""
    negative: int | None = None
    unedited: str = ""


_ONE = (Source(("text_encoder",)),)
_PENULTIMATE = (Source(("text_encoder",), left_out=1),)
_EMBEDDER = re.compile(r"^context_embedder$")
_CROSS = re.compile(r"^transformer_blocks\.\d+\.attn2\.to_[kv]$")
_ADDED = re.compile(r"^transformer_blocks\.\d+\.attn\.add_[kv]_proj$")

FAMILIES: tuple[Family, ...] = (
    Family(
        "Stable Diffusion 1.x, 2.x and SDXL",
        "UNet2DConditionModel",
        "cross",
        # attn1 reads text instead of the picture in blocks built with `only_cross_attention`.
        re.compile(r"(^|\.)attn[12]\.to_[kv]$"),
        (Source(("text_encoder", "text_encoder_2"), left_out=1),),
        components=("unet",),
        pooled=Pooled(r"^add_embedding\.linear_1$", output=2, encoders=("text_encoder_2",)),
    ),
    Family(
        "AnimateDiff",
        "UNetMotionModel",
        "cross",
        # Not the motion modules, whose attn2 goes from frame to frame.
        re.compile(r"\.attentions\.\d+\.transformer_blocks\.\d+\.attn2\.to_[kv]$"),
        (Source(("text_encoder", "text_encoder_2"), left_out=1),),
        components=("unet",),
        pooled=Pooled(r"^add_embedding\.linear_1$", output=2, encoders=("text_encoder_2",)),
    ),
    Family(
        "Stable Diffusion 3 and 3.5",
        "SD3Transformer2DModel",
        "joint",
        _EMBEDDER,
        (Source(("text_encoder", "text_encoder_2"), left_out=1), Source(("text_encoder_3",), optional=True)),
        pooled=Pooled(
            r"^time_text_embed\.text_embedder\.linear_1$", output=2, encoders=("text_encoder", "text_encoder_2")
        ),
        # attn2 of 3.5 is attention of the picture to itself.
        joint=_ADDED,
    ),
    Family(
        "FLUX.1",
        "FluxTransformer2DModel",
        "joint",
        _EMBEDDER,
        (Source(("text_encoder_2",)),),
        pooled=Pooled(r"^time_text_embed\.text_embedder\.linear_1$", output=1),
        joint=_ADDED,
    ),
    Family("FLUX.2", "Flux2Transformer2DModel", "joint", _EMBEDDER, _ONE, joint=_ADDED),
    Family("Chroma", "ChromaTransformer2DModel", "joint", _EMBEDDER, _ONE, joint=_ADDED),
    Family(
        "AuraFlow",
        "AuraFlowTransformer2DModel",
        "joint",
        _EMBEDDER,
        _ONE,
        joint=re.compile(r"^joint_transformer_blocks\.\d+\.attn\.add_[kv]_proj$"),
        padding="zero",
    ),
    Family(
        "Qwen-Image",
        "QwenImageTransformer2DModel",
        "joint",
        re.compile(r"^txt_in$"),
        _ONE,
        through=("txt_norm",),
        joint=_ADDED,
        mask=1,
    ),
    Family("PixArt", "PixArtTransformer2DModel", "cross", _CROSS, _ONE, through=("caption_projection",), mask=1),
    Family(
        "Sana",
        "SanaTransformer2DModel",
        "cross",
        _CROSS,
        _ONE,
        through=("caption_projection", "caption_norm"),
        mask=1,
        negative=2,
    ),
    Family(
        "Wan",
        "WanTransformer3DModel",
        "cross",
        re.compile(r"^blocks\.\d+\.attn2\.to_[kv]$"),
        _ONE,
        components=("transformer", "transformer_2"),
        through=("condition_embedder.text_embedder",),
        padding="zero",
    ),
    Family(
        "Hunyuan-DiT",
        "HunyuanDiT2DModel",
        "cross",
        re.compile(r"^blocks\.\d+\.attn2\.to_[kv]$"),
        (Source(("text_encoder",)), Source(("text_encoder_2",), through=("text_embedder",))),
        mask=2,
        padding="text_embedding_padding",
        unedited="time_extra_emb.pooler (a summary of the T5 states)",
    ),
    Family(
        "Lumina-Next",
        "LuminaNextDiT2DModel",
        "cross",
        re.compile(r"^(?P<block>layers\.\d+)\.attn2\.to_[kv]$"),
        _PENULTIMATE,
        through=("{block}.norm1_context",),
        pooled=Pooled(r"^time_caption_embed\.caption_embedder\.1$", through=("time_caption_embed.caption_embedder.0",)),
        mask=1,
    ),
    Family(
        "Lumina 2",
        "Lumina2Transformer2DModel",
        "single",
        re.compile(r"^time_caption_embed\.caption_embedder\.1$"),
        _PENULTIMATE,
        through=("time_caption_embed.caption_embedder.0",),
        mask=1,
        negative=2,
    ),
    Family(
        "Z-Image",
        "ZImageTransformer2DModel",
        "single",
        re.compile(r"^cap_embedder\.1$"),
        _PENULTIMATE,
        through=("cap_embedder.0",),
    ),
    Family("CogView4", "CogView4Transformer2DModel", "single", re.compile(r"^patch_embed\.text_proj$"), _PENULTIMATE),
    Family("PRX", "PRXTransformer2DModel", "joint", re.compile(r"^txt_in$"), _ONE, mask=1),
)


def supported() -> str:
    """The families and their denoisers, for messages."""
    return "; ".join(f"{family.title}: {family.denoiser}" for family in FAMILIES)
