"""Soft tokens: embeddings of no word, which stand in a prompt in the place of words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from erasers.diffusion.clip import encode
from erasers.diffusion.tokens import decode, tokenise
from erasers.models.prompts import converted


class SoftPrompt:
    """A prompt in which soft tokens stand in the place of words.

    The tokeniser needs something to put there: for each word, one token that the rest of the prompt does not use, as
    often as the word has soft tokens. A hook on the token embedding then replaces what that token looks up.

    Args:
        pipe: A Stable Diffusion 1 or 2 pipeline.
        text: The prompt with each word once.
        counts: Word -> number of its soft tokens.
        clip_skip: As for `encode`.

    Raises:
        ValueError: A word that the text does not have once, or so long a text that soft tokens are cut off.
    """

    def __init__(self, pipe: Any, text: str, counts: Mapping[str, int], *, clip_skip: int | None = None) -> None:
        self._pipe, self._counts, self._skip = pipe, dict(counts), clip_skip
        for word in counts:
            if text.count(word) != 1:
                raise ValueError(f"expected {word!r} once in the prompt, got it {text.count(word)} times in {text!r}")
        rest = text
        for word in counts:
            rest = rest.replace(word, " ")
        used = set(pipe.tokenizer(converted(pipe, pipe.tokenizer, rest)).input_ids)
        self._carriers: dict[str, int] = {}
        for word, count in counts.items():
            carrier = _carrier(pipe.tokenizer, used)
            used.add(carrier)
            self._carriers[word] = carrier
            text = text.replace(word, " ".join([decode(pipe.tokenizer, torch.tensor([carrier]))] * count))
        self.text = text
        self.ids = tokenise(pipe, text)
        for word, count in counts.items():
            read = int((self.ids == self._carriers[word]).sum())
            if read != count:
                raise ValueError(
                    f"expected room for {count} soft tokens of {word!r}, got {read}; the prompt is too long for the "
                    f"{pipe.tokenizer.model_max_length} tokens of the text encoder"
                )

    @contextmanager
    def placed(self, tokens: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Inside, the text encoder reads `tokens` (word -> embeddings `[k, d]`) wherever it is given `self.text`.

        Other texts, such as a negative prompt, are read as ever. Embeddings `[n, k, d]` are for n rows of that text.
        """

        def put(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
            ids = args[0] if args else kwargs["input"]
            for word, vectors in tokens.items():
                at = ids == self._carriers[word]
                whole = at.sum(dim=-1, keepdim=True) == self._counts[word]
                rows = int(whole.sum())
                source = vectors.to(output.device, output.dtype)
                source = source.flatten(0, 1) if source.dim() == 3 else source.repeat(rows, 1)
                output = output.masked_scatter((at & whole).unsqueeze(-1), source) if rows else output
            return output

        handle = self._pipe.text_encoder.get_input_embeddings().register_forward_hook(put, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def states(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Text states `[1, n, d]` of the prompt with these soft tokens, with gradients to them.

        One row for each of the first dimension of embeddings `[rows, k, d]`.
        """
        rows = max((len(vectors) for vectors in tokens.values() if vectors.dim() == 3), default=1)
        with self.placed(tokens):
            return encode(self._pipe, self.ids.expand(rows, -1), self._skip)


def _carrier(tokenizer: Any, used: set[int]) -> int:
    """The first token that is a word of its own and not in use."""
    for token in range(len(tokenizer)):
        text = decode(tokenizer, torch.tensor([token]))
        if (
            token not in used
            and text
            and tokenizer(f"{text} {text}", add_special_tokens=False).input_ids == [token] * 2
        ):
            return token
    raise ValueError("expected a token that is a word of its own beside those of the prompt, got none")
