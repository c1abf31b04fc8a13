"""Janus, token by token: what it reads of prompts, the tokens that it draws, and the states that it draws them from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch.nn import functional

from erasers.models.model_pipeline import ModelPipeline

Context = Literal["full", "last_token"]
"""What a token of a picture is drawn from: all before it, by a cache of keys and values, or the last token alone."""


class Asked(NamedTuple):
    """Prompts as the model reads them, and below them the same without their words, for guidance.

    Args:
        states: Embeddings `[2n, L, d]`.
        mask: Positions that count, `[2n, L]`.
    """

    states: torch.Tensor
    mask: torch.Tensor


def ask(pipe: ModelPipeline, prompts: Sequence[str]) -> list[Asked]:
    """Each prompt in the chat template of the processor, where it has one, with the token that starts a picture.

    All are of one length, filled up on the left.
    """
    texts = [_chat(pipe.processor, prompt) for prompt in prompts]
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    inputs = pipe.processor(text=texts, generation_mode="image", **options)
    return [
        _asked(pipe, ids[None], mask[None])
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]


def ask_raw(pipe: ModelPipeline, prompts: Sequence[str]) -> list[Asked]:
    """Each prompt as it is, without the token that starts a picture.

    All are cut or filled up to the length of the first, on the right, and the filling counts.
    """
    rows = [torch.tensor(pipe.processor.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    length, pad = len(rows[0]), pipe.processor.tokenizer.pad_token_id
    cut = [functional.pad(row[:length], (0, length - len(row[:length])), value=pad)[None] for row in rows]
    return [_asked(pipe, ids, torch.ones_like(ids)) for ids in cut]


def drawn(logits: torch.Tensor, guidance: float, generator: torch.Generator) -> torch.Tensor:
    """One token for each prompt `[n, 1]`, by logits `[2n, N]`: of the guided distribution, at temperature 1."""
    asked, empty = logits.float().chunk(2)
    shares = (empty + guidance * (asked - empty)).softmax(dim=-1).to(generator.device)
    return torch.multinomial(shares, 1, generator=generator).to(logits.device)


@torch.no_grad()
def draw_tokens(
    model: Any, asked: Asked, guidance: float, generator: torch.Generator, context: Context = "full"
) -> torch.Tensor:
    """The tokens of a picture of each prompt, `[n, T]`."""
    states, mask, cache = asked.states, asked.mask, None
    tokens: list[torch.Tensor] = []
    for _ in range(model.config.vision_config.num_image_tokens):
        output = model.model.language_model(
            inputs_embeds=states, attention_mask=mask, past_key_values=cache, use_cache=context == "full"
        )
        tokens.append(drawn(model.model.generation_head(output.last_hidden_state[:, -1]), guidance, generator))
        states = model.prepare_embeddings_for_image_generation(tokens[-1].repeat(2, 1))
        one = mask.new_ones(len(mask), 1)
        mask, cache = (torch.cat([mask, one], dim=1), output.past_key_values) if context == "full" else (one, None)
    return torch.cat(tokens, dim=1)


def states_of(
    model: Any, asked: Asked, tokens: torch.Tensor, window: slice, context: Context = "full"
) -> list[torch.Tensor]:
    """What each token of a window is drawn from.

    Args:
        model: Janus.
        asked: Prompts.
        tokens: Of their pictures, `[n, T]`.
        window: From which token to which.
        context: As the tokens were drawn.

    Returns:
        Last states of the language model, for each token `[2n, d]`. Without context they depend on the token before
        alone and are `[n, 1, d]`, those of the prompt, `[2n, L, d]`, for the first.
    """
    if context == "full":
        return list(_states(model, asked, tokens[:, : window.stop])[:, window].unbind(dim=1))
    first = [] if window.start else [_language(model, asked.states, asked.mask)]
    before = tokens[:, max(window.start, 1) - 1 : window.stop - 1]
    alone = model.prepare_embeddings_for_image_generation(before.T.reshape(-1, 1))
    rows = _language(model, alone, torch.ones(alone.shape[:2], device=alone.device)) if len(alone) else alone
    return [*first, *rows.unflatten(0, (-1, len(tokens))).unbind(dim=0)]


def _states(model: Any, asked: Asked, tokens: torch.Tensor) -> torch.Tensor:
    """What each of the tokens `[n, T]` is drawn from, in one pass: `[2n, T, d]`."""
    before = model.prepare_embeddings_for_image_generation(tokens[:, :-1].repeat(2, 1))
    mask = torch.cat([asked.mask, asked.mask.new_ones(before.shape[:2])], dim=1)
    states = _language(model, torch.cat([asked.states, before.to(asked.states)], dim=1), mask)
    return states[:, asked.states.shape[1] - 1 :]


def _language(model: Any, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = model.model.language_model(
        inputs_embeds=states, attention_mask=mask, use_cache=False
    ).last_hidden_state
    return output


def _asked(pipe: ModelPipeline, ids: torch.Tensor, mask: torch.Tensor) -> Asked:
    """The prompt, and below it the same with padding in the place of its words, as Janus has it."""
    tokenizer, device = pipe.processor.tokenizer, pipe.model.device
    start = tokenizer.convert_tokens_to_ids(pipe.processor.image_start_token)
    kept = (ids == tokenizer.bos_token_id) | (ids == start)
    both = torch.cat([ids, torch.where(kept, ids, torch.full_like(ids, tokenizer.pad_token_id))])
    return Asked(pipe.model.get_input_embeddings()(both.to(device)).detach(), mask.repeat(2, 1).to(device))


def _chat(processor: Any, prompt: str) -> str:
    if getattr(processor, "chat_template", None) is None:
        return prompt
    turn = {"role": "user", "content": [{"type": "text", "text": prompt}]}
    return str(processor.apply_chat_template([turn], add_generation_prompt=True))
