"""From prompts to text states, as the pipeline itself gives them to its denoiser.

The denoisers of Stable Diffusion 1.x, 2.x and SDXL read CLIP encoders, which are causal, so that a prompt is encoded no
further than its last wanted token. Every other pipeline encodes by its own `encode_prompt`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from erasers.models.calls import handed_on
from erasers.models.families import Family, Source, UnsupportedPipeline
from erasers.models.ports import find_family, read_through
from erasers.text.clip import encode_clip
from erasers.text.prompts import Prompt
from erasers.text.states import Encoded, Rows, Segment

_PROMPTS_A_BATCH = 8
# A word behind a text show where it ends: two prompts that both begin with it agree that far.
_PROBE = " and"


@dataclass(frozen=True)
class Reader:
    """How the prompts of one fit are encoded.

    Args:
        pipe: A supported pipeline.
        policy: Decides how many tokens are encoded: those that `Encoded.rows(policy)` needs.
        pooled: Return the pooled vectors, too.
        max_length: Tokens that a prompt is padded or cut to, where the pipeline takes `max_sequence_length`; None: the
            default of the pipeline.
        clip_skip: Last layers of CLIP that are left out, as when pictures are drawn with it.
    """

    pipe: Any
    policy: Rows
    pooled: bool = False
    max_length: int | None = None
    clip_skip: int | None = None

    def encode(self, prompts: Iterable[Prompt]) -> dict[Prompt, Encoded]:
        """States of every distinct prompt.

        Raises:
            UnsupportedPipeline: The message lists the supported ones.
            ValueError: A pipeline without its text encoder.
        """
        distinct = list(dict.fromkeys(prompts))
        family, denoisers = find_family(self.pipe)
        _check_encoders(self.pipe, family)
        if not distinct:
            return {}
        if family.components == ("unet",):
            encoded = encode_clip(
                self.pipe,
                text_parts(self.pipe),
                distinct,
                self.policy,
                penultimate=hasattr(self.pipe, "text_encoder_2"),
                skip=self.clip_skip,
            )
            return self._with_pooled(encoded) if self.pooled else encoded
        through = {source: _modules(denoisers[0][1], source) for source in family.sources}
        result: dict[Prompt, Encoded] = {}
        for batch in _batches(distinct):
            result |= dict(zip(batch, _encode_batch(self, family, batch, through), strict=True))
        return {prompt: result[prompt] for prompt in distinct}

    def _with_pooled(self, encoded: Mapping[Prompt, Encoded]) -> dict[Prompt, Encoded]:
        """The same with the vectors that SDXL has beside the states."""
        result = {}
        for batch in _batches(list(encoded)):
            output, _ = _call(self, [prompt.text for prompt in batch], [], {})
            for prompt, vector in zip(batch, output[2], strict=True):
                result[prompt] = replace(encoded[prompt], pooled=vector.detach().cpu())
        return result


def text_parts(pipe: Any) -> list[tuple[str, Any, Any]]:
    """(name, tokenizer, text encoder) of every text encoder that the pipeline has.

    Raises:
        UnsupportedPipeline: The message lists the supported ones.
        ValueError: The pipeline was loaded without its text encoder or tokenizer.
    """
    _check_encoders(pipe, find_family(pipe)[0])
    names = [
        name for name in ("text_encoder", "text_encoder_2", "text_encoder_3") if getattr(pipe, name, None) is not None
    ]
    return [(name, getattr(pipe, name.replace("text_encoder", "tokenizer")), getattr(pipe, name)) for name in names]


def _check_encoders(pipe: Any, family: Family) -> None:
    for source in family.sources:
        declared = [name for name in source.encoders if hasattr(pipe, name)]
        for name in declared:
            tokenizer = name.replace("text_encoder", "tokenizer")
            if (getattr(pipe, name) is None) != (getattr(pipe, tokenizer, None) is None):
                absent = name if getattr(pipe, name) is None else tokenizer
                raise ValueError(f"expected {type(pipe).__name__} with a {absent}, got None; load the pipeline with it")
        # SDXL's refiner has only the second of two; a source with none cannot be read.
        if not source.optional and all(getattr(pipe, name) is None for name in declared):
            raise ValueError(f"expected {type(pipe).__name__} with a text encoder, got None; load the pipeline with it")


def _encode_batch(
    reader: Reader, family: Family, prompts: Sequence[Prompt], through: Mapping[Source, Sequence[torch.nn.Module]]
) -> list[Encoded]:
    pipe = reader.pipe
    sources = [source for source in family.sources if getattr(pipe, source.encoders[0], None) is not None]
    calls = [[source] for source in sources] if "text_encoder_index" in _parameters(pipe) else [sources]
    segments: list[list[Segment]] = [[] for _ in prompts]
    pooled: list[torch.Tensor | None] = [None] * len(prompts)
    for number, call in enumerate(calls):
        more = {"text_encoder_index": number} if len(calls) > 1 else {}
        output, ids = _call(reader, [prompt.text for prompt in prompts], call, more)
        # Pipelines without guidance (Sana Sprint) have no rules for a negative prompt.
        if family.negative and not prompts[0].text and "do_classifier_free_guidance" in _parameters(pipe):
            both, _ = _call(reader, [""] * len(prompts), call, {"do_classifier_free_guidance": True})
            output = both[family.negative :]
        ends = [_ends(reader, prompts, source, ids[source], more) for source in call]
        for index in range(len(prompts)):
            fresh = list(
                _segments(family, output, index, [ids[source] for source in call], [end[index] for end in ends])
            )
            for source, segment in zip(call, fresh, strict=True):
                segments[index].append(replace(segment, states=read_through(through[source], segment.states)))
        if reader.pooled and family.pooled is not None:
            pooled = _pooled(output, family.pooled.output, segments)
    return [Encoded(tuple(own), vector) for own, vector in zip(segments, pooled, strict=True)]


def _batches(prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    """Prompts in batches; the empty ones apart, for some pipelines encode them as they encode negative prompts."""
    for alike in ([prompt for prompt in prompts if not prompt.text], [prompt for prompt in prompts if prompt.text]):
        for start in range(0, len(alike), _PROMPTS_A_BATCH):
            yield alike[start : start + _PROMPTS_A_BATCH]


def _pooled(output: Any, where: int | None, segments: Sequence[Sequence[Segment]]) -> list[torch.Tensor | None]:
    if where is None:
        return [torch.cat([segment.states for segment in own]).mean(dim=0) for own in segments]
    return list(output[where].detach().cpu())


def _segments(
    family: Family, output: Any, index: int, ids: Sequence[torch.Tensor], ends: Sequence[tuple[int, int]]
) -> Iterator[Segment]:
    """The states of one prompt by source, without those that the denoiser does not see."""
    states = output if isinstance(output, torch.Tensor) else output[0]
    cut = isinstance(states, list)
    states = states[index].detach().cpu()
    mask = None if family.mask is None else output[family.mask]
    seen = torch.ones(len(states), dtype=torch.bool) if mask is None else mask[index].bool().cpu()
    if family.padding == "zero":
        seen &= states.abs().amax(dim=-1) > 0
    start = 0
    for number, (tokens, (lead, end)) in enumerate(zip(ids, ends, strict=True)):
        stop = len(states) if number == len(ids) - 1 and family.sources[number + 1 :] == () else start + tokens.shape[1]
        mine, visible = states[start:stop], seen[start:stop]
        # Templates are cut off in front, padding behind; a list has lost its padding on either side.
        position = end - (lead if cut else tokens.shape[1] - len(mine))
        position = min(max(0, position), len(mine) - 1)
        last = int(visible[:position].sum())
        yield Segment(mine[visible], min(last, max(0, int(visible.sum()) - 1)))
        start = stop


def _ends(
    reader: Reader, prompts: Sequence[Prompt], source: Source, ids: torch.Tensor, more: Mapping[str, Any]
) -> list[tuple[int, int]]:
    """(leading padding, position of the last subject token) among the token ids of each prompt."""
    if reader.policy == "all":
        return [(0, 0)] * len(prompts)
    texts = [text for prompt in prompts for text in (prompt.head, (prompt.head + _PROBE).strip())]
    tokenizer = getattr(reader.pipe, source.encoders[0].replace("text_encoder", "tokenizer"))
    pad = getattr(getattr(tokenizer, "tokenizer", tokenizer), "pad_token_id", None)
    probes = _call(reader, texts, [source], more, only_ids=True)[1][source]
    ends = []
    for row, head, probe in zip(ids, probes[::2], probes[1::2], strict=True):
        lead = _leading(row, pad)
        ends.append((lead, lead + _common(head[_leading(head, pad) :], probe[_leading(probe, pad) :]) - 1))
    return ends


class _Seen(Exception):
    """The token ids are known and nothing else is wanted."""


def _call(
    reader: Reader, texts: list[str], sources: Sequence[Source], more: Mapping[str, Any], *, only_ids: bool = False
) -> tuple[Any, dict[Source, torch.Tensor]]:
    """What `encode_prompt` returns, and the token ids `[texts, tokens]` that the first encoder of each source got."""
    ids: dict[Source, torch.Tensor] = {}
    if "prompt" not in _parameters(reader.pipe):
        raise UnsupportedPipeline(f"{type(reader.pipe).__name__} encodes no plain prompt; its text ports can be edited")

    def watch(source: Source) -> Any:
        def look(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            ids[source] = torch.as_tensor(named["input_ids"] if "input_ids" in named else given[0]).cpu()
            if only_ids and len(ids) == len(sources):
                raise _Seen

        return look

    handles = [
        getattr(reader.pipe, source.encoders[0]).register_forward_pre_hook(watch(source), with_kwargs=True)
        for source in sources
    ]
    try:
        with torch.no_grad():
            output = reader.pipe.encode_prompt(texts, **{**_options(reader), **more})
    except _Seen:
        output = None
    finally:
        for handle in handles:
            handle.remove()
    return output, ids


def _options(reader: Reader) -> dict[str, Any]:
    """Arguments of `encode_prompt`: as `__call__` gives them, for one picture and without guidance."""
    wanted, options = _parameters(reader.pipe), handed_on(reader.pipe)
    if reader.max_length is not None:
        options["max_sequence_length"] = reader.max_length
    if reader.clip_skip is not None:
        if "clip_skip" not in wanted:
            raise ValueError(f"expected no clip_skip, which {type(reader.pipe).__name__} does not take")
        options["clip_skip"] = reader.clip_skip
    return {name: value for name, value in options.items() if name in wanted}


def _parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(pipe.encode_prompt).parameters


def _modules(denoiser: torch.nn.Module, source: Source) -> list[torch.nn.Module]:
    return [denoiser.get_submodule(path) for path in source.through]


def _leading(ids: torch.Tensor, pad: int | None) -> int:
    """Number of padding tokens in front; a row of nothing else has none."""
    if pad is None:
        return 0
    other = torch.nonzero(ids != torch.tensor(pad))
    return int(other[0]) if len(other) else 0


def _common(left: torch.Tensor, right: torch.Tensor) -> int:
    """Length of the common beginning."""
    count = min(len(left), len(right))
    different = (left[:count] != right[:count]).nonzero()
    return int(different[0]) if len(different) else count
