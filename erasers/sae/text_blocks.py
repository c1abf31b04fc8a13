"""What comes out of one block of a text encoder, token by token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from erasers.diffusion.adaptors.adaptor import module_of
from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.soft import quiet
from erasers.diffusion.supported import check_readable
from erasers.diffusion.tokens import tokenizer_of
from erasers.files.hashing import tensor_hashes
from erasers.models.encoder_blocks import blocks_of, in_block, is_clip
from erasers.models.families import UnsupportedPipeline
from erasers.models.feeding import feeds_of
from erasers.patch.feature_hooks import first_output

_EMBEDDINGS = re.compile(r"(?:^|\.)(?:embeddings|embed_tokens|shared)\.")
_T5 = ("T5EncoderModel", "UMT5EncoderModel")
_PROMPTS_A_BATCH = 64


@dataclass(frozen=True)
class Block:
    """One block of one text encoder.

    Args:
        name: Component of the text encoder.
        path: Module path inside of it.
        model: The text encoder.
        tokenizer: Its tokenizer.
        pipe: The pipeline, which feeds it.
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

    @cached_property
    def first(self) -> int:
        """The first token that counts: 1 where all prompts begin with the same one, as those of CLIP do, else 0."""
        ids = self.tokens(["", "a"])[0]
        return int(ids[0, 0] == ids[1, 0])

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the weights that make its output, by parameter name."""
        place = in_block(self.path)
        last = -1 if place is None else place.number
        tensors = {}
        for path, parameter in self.model.named_parameters():
            layer = in_block(path)
            if _EMBEDDINGS.search(path) or layer and layer.number <= last:
                tensors[f"{self.name}.{path}"] = parameter.data
        return tensor_hashes(tensors, owner=self.model)

    @torch.no_grad()
    def tokens(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids as the pipeline makes them, and which are not behind the end of a prompt, each `[prompts, T]`."""
        given: list[torch.Tensor] = []

        def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given.append((args[0] if args else kwargs["input_ids"]).cpu())
            raise _Seen

        self._until(self.model.register_forward_pre_hook(look, with_kwargs=True), prompts)
        ids = given[0]
        # The padding token may be the end token itself: all up to the first one counts.
        ends = (ids == self.tokenizer.eos_token_id).long()
        return ids, ((ends.cumsum(dim=-1) - ends) == 0).long()

    def counted(self, outputs: torch.Tensor) -> torch.Tensor:
        """Outputs `[prompts, T, d]` without a first token that is the same in every prompt."""
        return outputs[:, self.first :]

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
        outputs: list[torch.Tensor] = []

        def look(_: nn.Module, __: Any, output: Any) -> None:
            outputs.append(first_output(output).detach().float().cpu())
            raise _Seen

        self._until(self.module.register_forward_hook(look), prompts)
        return outputs[0]

    def _until(self, hook: RemovableHandle, prompts: Sequence[str]) -> None:
        """Have the pipeline encode prompts until a hook has seen what it wants."""
        try:
            with quiet():
                adaptor_of(self.pipe).encode(self.pipe, list(prompts))
        except _Seen:
            pass
        finally:
            hook.remove()


class _Seen(Exception):
    """What a hook looks for is known and nothing else is wanted."""


def readable_encoders(pipe: Any) -> list[str]:
    """The text encoders of a pipeline whose blocks can be described, those of CLIP and T5.

    Raises:
        UnsupportedPipeline: A pipeline of another family, or one without such an encoder.
        ValueError: It has no text encoder.
    """
    check_readable(pipe)
    kinds = {name: module_of(pipe, name) for name in feeds_of(pipe)}
    names = [name for name, model in kinds.items() if is_clip(model) or type(model).__name__ in _T5]
    if not names:
        said = ", ".join(f"{name} {type(model).__name__}" for name, model in kinds.items())
        raise UnsupportedPipeline(
            f"expected a pipeline with a text encoder of CLIP or T5, got {said}; a language model reads a prompt in a "
            "template, and which tokens are the prompt's is not known; describe a block of the denoiser instead"
        )
    return names


def find_blocks(pipe: Any) -> list[Block]:
    """The block of each text encoder of a pipeline that is described unless another is asked for; raises as others."""
    return [encoder_block(pipe, name) for name in readable_encoders(pipe)]


def encoder_block(pipe: Any, name: str, number: int | None = None) -> Block:
    """A block of a text encoder.

    Args:
        pipe: A pipeline of a family in `erasers.diffusion.adaptors.table`.
        name: Component of the text encoder.
        number: Of the block, from 0; None: three quarters of the way up, which is 8 of the 12 of Stable Diffusion 1, as
            published.

    Raises:
        UnsupportedPipeline: Another pipeline.
        ValueError: No such encoder or block, or a block behind what the pipeline reads.
    """
    if name not in (names := readable_encoders(pipe)):
        raise ValueError(f"expected a text encoder among {', '.join(names)}, got {name!r:.80}")
    model, feed = module_of(pipe, name), feeds_of(pipe)[name]
    last = feed.upstream - 1
    number = min(round(0.75 * feed.depth) - 1, last) if number is None else number
    if not 0 <= number <= last:
        raise ValueError(f"expected a block from 0 to {last} of {name}, upstream of what is read, got {number}")
    path = next(path for path, _ in blocks_of(model) if (place := in_block(path)) and place.number == number)
    return Block(name, path, model, tokenizer_of(pipe, name), pipe)


def find_block(pipe: Any, target: str) -> Block:
    """The block of that name, `<component>.<module path>`.

    Raises:
        UnsupportedPipeline: Another pipeline.
        ValueError: The pipeline has no such block.
    """
    name, _, path = target.partition(".")
    place = in_block(path)
    block = encoder_block(pipe, name, place.number) if place and name in readable_encoders(pipe) else None
    if block is None or block.path != path:
        raise ValueError(f"expected {type(pipe).__name__} with {target}, got one without it")
    return block


def check_read(block: Block, clip_skip: int | None) -> None:
    """Refuse a block whose output nothing reads, as layers are left out.

    Raises:
        ValueError: Says which blocks are read.
    """
    place, read = in_block(block.path), feeds_of(block.pipe, clip_skip)[block.name].upstream
    if place and place.number >= read:
        raise ValueError(
            f"expected an autoencoder of one of the {read} first blocks of the {block.name}, which are read with "
            f"clip_skip {clip_skip}, got one of block {place.number}"
        )
