"""From prompts to token-embedding rows: tokenising, one batched encoding, and the choice of rows.

Row policies, for a prompt whose last subject token is at position i (0 is BOS, so i = 0 for the empty prompt):

* `last`: row i alone. A CLIP encoder is causal, so the tokens after i are not even encoded.
* `tail`: row i and all that follow, the end and padding tokens included.
* `all`: every row of the padded prompt.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from erasers.concept import Concept
from erasers.ports import TextEncoder, text_encoders

Rows: TypeAlias = Literal["last", "tail", "all"]

TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": ("{}", "a {}", "a picture of a {}", "a red {}", "a blue {} on a white background"),
    "style": ("[{}]", "a picture[ in the style of {}]", "art[ by {}]", "a painting[ by {}]", "[{} style]"),
    "attribute": ("[{}]", "a[ {}] thing", "a picture of a[ {}] object", "something[ {}]"),
    "identity": ("{}", "a picture of {}", "a photo of {}", "a portrait of {}"),
    "unsafe": ("[{}]", "a picture[ of {}]", "a photo[ with {}]"),
    "implicit": ("[{}]", "a picture[ with {}]", "a picture[ with a {}]"),
}
"""Prompt patterns by kind of concept; `[...]` goes with the name when the anchor is empty."""

_TOKENS_A_BATCH = 2048
_OPTIONAL = re.compile(r"(?P<before>.*?)\[(?P<inner>[^\[\]]*\{\}[^\[\]]*)\](?P<after>.*)", re.DOTALL)
_LETTERS = string.ascii_letters


class Prompt(NamedTuple):
    """A prompt, and the part of it that ends with the subject."""

    text: str
    head: str


@dataclass(frozen=True)
class Encoded:
    """States of one prompt.

    Args:
        states: `[tokens, d]`: up to the last subject token under the policy `last`, else the whole padded prompt.
        last: Position of the last subject token.
    """

    states: torch.Tensor
    last: int

    def rows(self, policy: Rows) -> torch.Tensor:
        """The rows `[n, d]` of that policy."""
        if policy == "last":
            return self.states[self.last : self.last + 1]
        return self.states[self.last :] if policy == "tail" else self.states


def encode(pipe: Any, prompts: Iterable[Prompt], policy: Rows) -> dict[Prompt, Encoded]:
    """States of every distinct prompt, as the pipeline itself would give them to the denoiser.

    Args:
        pipe: A supported pipeline.
        prompts: Each distinct one is encoded once.
        policy: Decides how many tokens are encoded: those that `Encoded.rows(policy)` needs.

    Raises:
        TypeError: An unsupported pipeline.
        ValueError: A pipeline without its text encoder, or a width that does not fit.
    """
    distinct = list(dict.fromkeys(prompts))
    if not distinct:
        return {}
    parts = [_encode_one(encoder, distinct, policy) for encoder in text_encoders(pipe)]
    found = {}
    for index, prompt in enumerate(distinct):
        states, lasts = zip(*(part[index] for part in parts), strict=True)
        if len(set(lasts)) > 1:
            raise ValueError(f"expected both tokenizers to split {prompt.text!r} alike, got last tokens {lasts}")
        found[prompt] = Encoded(torch.cat(states, dim=-1), lasts[0])
    return found


def pair_rows(concept: Encoded, anchor: Encoded, policy: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the concept and, row by row, what each of them becomes; both `[n, d]`.

    `tail` starts both at their last subject token and takes as many rows as the longer prompt has left. An empty anchor
    starts at its BOS row under `last` and `tail`.
    """
    if policy == "last":
        return concept.rows("last"), anchor.rows("last")
    if policy == "all":
        return concept.states, anchor.states
    count = len(concept.states) - max(concept.last, anchor.last)
    return concept.rows("tail")[:count], anchor.rows("tail")[:count]


def templates_for(concept: Concept, templates: Sequence[str] | Literal["auto"]) -> tuple[str, ...]:
    """The prompt patterns to use for a concept: given ones, or those of its kind."""
    return TEMPLATES[concept.kind] if templates == "auto" else tuple(templates)


def whole(text: str) -> Prompt:
    """A prompt that is all subject."""
    return Prompt(text, text)


def fill(template: str, text: str) -> Prompt:
    """The template with its `{}` filled; spaces are collapsed.

    An empty text takes the `[...]` around the `{}` with it, and the subject then ends where that stood.
    """
    match = _OPTIONAL.fullmatch(template)
    before, after = template.split("{}") if match is None else (match["before"], match["after"])
    if match is not None and text:
        left, right = match["inner"].split("{}")
        before, after = before + left, right + after
    # A suffix belongs to the word: the plural s of "two {}s".
    suffix = "" if not text else after[: len(after) - len(after.lstrip(_LETTERS))]
    head, full = f"{before}{text}{suffix}", f"{before}{text}{after}"
    return Prompt(" ".join(full.split()), " ".join(head.split()))


def _encode_one(encoder: TextEncoder, prompts: Sequence[Prompt], policy: Rows) -> list[tuple[torch.Tensor, int]]:
    """(states, last subject token) of each prompt by one encoder."""
    length = _max_length(encoder)
    ids, mask = _tokenize(encoder, [prompt.text for prompt in prompts], length)
    # The mask counts BOS, subject tokens and one EOS; '' has no subject and starts at BOS.
    ends = mask.sum(dim=1) - 2
    partial = [index for index, prompt in enumerate(prompts) if prompt.head != prompt.text]
    if partial:
        heads = _tokenize(encoder, [prompts[index].head for index in partial], length)[1]
        ends[partial] = heads.sum(dim=1) - 2
    lasts = ends.clamp(min=0).tolist()
    short = policy == "last" and _is_causal(encoder.model)
    sizes = [last + 1 if short else length for last in lasts]
    results: list[tuple[torch.Tensor, int]] = [(torch.empty(0), 0)] * len(prompts)
    for size, batch in _batches(sizes):
        states = _states(encoder, ids[batch, :size], mask[batch, :size])
        for row, index in enumerate(batch):
            results[index] = states[row], lasts[index]
    return results


def _tokenize(encoder: TextEncoder, texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, each `[texts, length]`."""
    tokens = encoder.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"]


@torch.no_grad()
def _states(encoder: TextEncoder, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    first = next(encoder.model.parameters(), None)
    device = ids.device if first is None or first.is_meta else first.device
    use_mask = getattr(getattr(encoder.model, "config", None), "use_attention_mask", False)
    given = {"attention_mask": mask.to(device) if use_mask else None}
    if encoder.states == "penultimate":
        output = encoder.model(ids.to(device), output_hidden_states=True, **given).hidden_states[-2]
    else:
        output = encoder.model(ids.to(device), **given)[0]
    return torch.as_tensor(output).detach().cpu()


def _batches(sizes: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Indices grouped by equal size (so that nothing is padded), in batches of a bounded number of tokens."""
    groups: dict[int, list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    batches = []
    for size, group in sorted(groups.items()):
        step = max(1, _TOKENS_A_BATCH // size)
        batches += [(size, group[start : start + step]) for start in range(0, len(group), step)]
    return batches


def _max_length(encoder: TextEncoder) -> int:
    limit = getattr(getattr(encoder.model, "config", None), "max_position_embeddings", None)
    length = int(encoder.tokenizer.model_max_length)
    return min(length, int(limit)) if limit else length


def _is_causal(model: Any) -> bool:
    names = {cls.__name__ for cls in type(model).__mro__}
    return bool(names & {"CLIPTextModel", "CLIPTextModelWithProjection"})
