"""What comes out of one block of a CLIP text encoder, token by token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from erasers.diffusion.supported import check_unet
from erasers.files.hashing import tensor_hashes
from erasers.models.components import component
from erasers.models.families import UnsupportedPipeline
from erasers.models.feeding import feeds_of
from erasers.models.prompts import converted
from erasers.patch.feature_hooks import first_output

_BLOCK = re.compile(r"(?P<stem>(?:.*\.)?encoder\.layers)\.(?P<number>\d+)")
_PROMPTS_A_BATCH = 64


@dataclass(frozen=True)
class Block:
    """One block of one text encoder.

    Args:
        name: Component of the text encoder.
        path: Module path inside of it.
        model: The text encoder.
        tokenizer: Its tokenizer.
        pipe: The pipeline, which may rewrite prompts before they are tokenised.
    """

    name: str
    path: str
    model: Any
    tokenizer: Any
    pipe: Any

    @property
    def target(self) -> str:
        """`<component>.<module path>`."""
        return f"{self.name}.{self.path}"

    @property
    def module(self) -> nn.Module:
        """The live block."""
        module: nn.Module = self.model.get_submodule(self.path)
        return module

    @property
    def width(self) -> int:
        """d of its rows."""
        return int(self.model.config.hidden_size)

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the weights that make its output, by parameter name."""
        match = _BLOCK.fullmatch(self.path)
        last = int(match["number"]) if match else -1
        tensors = {}
        for path, parameter in self.model.named_parameters():
            layer = _BLOCK.match(path)
            if "embeddings" in path or layer and int(layer["number"]) <= last:
                tensors[f"{self.name}.{path}"] = parameter.data
        return tensor_hashes(tensors, owner=self.model)

    def tokens(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids as the pipeline makes them, and their attention mask, each `[prompts, T]`."""
        length = min(int(self.tokenizer.model_max_length), int(self.model.config.max_position_embeddings))
        texts = [converted(self.pipe, self.tokenizer, prompt) for prompt in prompts]
        encoded = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return encoded["input_ids"], encoded["attention_mask"]

    @torch.no_grad()
    def outputs(self, prompts: Sequence[str]) -> torch.Tensor:
        """What the block makes of prompts: `[prompts, T, d]` in float32 on the CPU; what lies behind it is not run.

        Hooks of patches on the block itself have acted on it.
        """
        if not prompts:
            raise ValueError("expected at least one prompt to read, got none")
        return torch.cat(list(self.batches(prompts, _PROMPTS_A_BATCH)))

    @torch.no_grad()
    def batches(self, prompts: Sequence[str], size: int) -> Iterator[torch.Tensor]:
        """The same in batches of prompts."""
        for start in range(0, len(prompts), size):
            yield self._run(prompts[start : start + size])

    def _run(self, prompts: Sequence[str]) -> torch.Tensor:
        ids, mask = self.tokens(prompts)
        device = next(self.model.parameters()).device
        given = {"attention_mask": mask.to(device)} if getattr(self.model.config, "use_attention_mask", False) else {}
        outputs: list[torch.Tensor] = []

        def look(_: nn.Module, __: Any, output: Any) -> None:
            outputs.append(first_output(output).detach().float().cpu())
            raise _Seen

        handle = self.module.register_forward_hook(look)
        try:
            self.model(ids.to(device), **given)
        except _Seen:
            pass
        finally:
            handle.remove()
        return outputs[0]


class _Seen(Exception):
    """The output of the block is known and nothing else is wanted."""


def find_blocks(pipe: Any, index: int | None = None) -> list[Block]:
    """One block of each CLIP text encoder of a pipeline.

    Args:
        pipe: A Stable Diffusion 1, 2 or XL pipeline.
        index: Number of the block, from 0; None: three quarters of the way up, which is 8 of the 12 of Stable
            Diffusion 1, as published.

    Raises:
        UnsupportedPipeline: Another pipeline.
        ValueError: No such block, or one behind what the pipeline reads.
    """
    check_unet(pipe)
    blocks = []
    for name in ("text_encoder", "text_encoder_2"):
        if getattr(pipe, name, None) is not None:
            blocks.append(_find(pipe, name, index))
    return blocks


def find_block(pipe: Any, target: str) -> Block:
    """The block of that name, `<component>.<module path>`.

    Raises:
        UnsupportedPipeline: Another pipeline.
        ValueError: The pipeline has no such block.
    """
    name, _, path = target.partition(".")
    match = _BLOCK.fullmatch(path)
    blocks = {block.name: block for block in find_blocks(pipe, int(match["number"]) if match else None)}
    if match is None or name not in blocks or blocks[name].path != path:
        raise ValueError(f"expected {type(pipe).__name__} with {target}, got one without it")
    return blocks[name]


def check_read(block: Block, clip_skip: int | None) -> None:
    """Refuse a block whose output nothing reads, as layers are left out.

    Raises:
        ValueError: Says which blocks are read.
    """
    match, read = _BLOCK.fullmatch(block.path), feeds_of(block.pipe, clip_skip)[block.name].blocks
    if match and int(match["number"]) >= read:
        raise ValueError(
            f"expected an autoencoder of one of the {read} first blocks of the {block.name}, which are read with "
            f"clip_skip {clip_skip}, got one of block {match['number']}"
        )


def _find(pipe: Any, name: str, index: int | None) -> Block:
    model = component(pipe, name)
    matches = [match for path, _ in model.named_modules() if (match := _BLOCK.fullmatch(path))]
    if not matches:
        raise UnsupportedPipeline(
            f"expected {name} as a CLIP text encoder with encoder.layers, got {type(model).__name__}"
        )
    depth = max(int(match["number"]) for match in matches) + 1
    # SDXL reads the states before the last block.
    last = depth - 2 if hasattr(pipe, "text_encoder_2") else depth - 1
    number = min(round(0.75 * depth) - 1, last) if index is None else index
    if not 0 <= number <= last:
        raise ValueError(f"expected a block from 0 to {last} of {name}, upstream of what is read, got {number}")
    tokenizer = getattr(pipe, name.replace("text_encoder", "tokenizer"))
    return Block(name, f"{matches[0]['stem']}.{number}", model, tokenizer, pipe)
