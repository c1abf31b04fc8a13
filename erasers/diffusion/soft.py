"""Soft tokens: embeddings of no word, which stand in a prompt in the place of words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from erasers.diffusion.adaptors.adaptor import module_of
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.table import adaptor_of, encoders_of
from erasers.diffusion.attacked import attacked_encoders, forms, widths
from erasers.diffusion.tokens import decode, longest, tokenizer_of
from erasers.models.encoder_blocks import is_clip
from erasers.models.prompts import converted


class SoftPrompt:
    """A prompt in which soft tokens stand in the place of words, for one text encoder or for several at once.

    The tokenizers need something to put there: for each word, another word that is one token of every attacked encoder
    and that the rest of the prompt does not use, as often as the word has soft tokens. A hook on the token embedding of
    each of these encoders then replaces what that token looks up. Encoders that are not attacked read the words.

    Args:
        pipe: A pipeline of a family in `erasers.diffusion.adaptors.table`.
        text: The prompt with each word once.
        counts: Word -> number of its soft tokens.
        clip_skip: As the pipeline takes it.
        encoders: See `attacked_encoders`.

    Raises:
        ValueError: A word that the text does not have once, or so long a text that soft tokens are cut off.
    """

    def __init__(
        self,
        pipe: Any,
        text: str,
        counts: Mapping[str, int],
        *,
        clip_skip: int | None = None,
        encoders: Sequence[str] = (),
    ) -> None:
        self._pipe, self._counts, self._skip = pipe, dict(counts), clip_skip
        self.encoders = attacked_encoders(pipe, encoders)
        self.widths = widths(pipe, self.encoders)
        for word in counts:
            if text.count(word) != 1:
                raise ValueError(f"expected {word!r} once in the prompt, got it {text.count(word)} times in {text!r}")
        self._carriers = _carriers(pipe, self.encoders, text, list(counts))
        for word, carrier in self._carriers.items():
            text = text.replace(word, " ".join([carrier.text] * counts[word]))
        self.text = text
        for name in self.encoders:
            ids = _read(pipe, name, text)
            for word, carrier in self._carriers.items():
                room = sum(token in carrier.ids[name] for token in ids)
                if room != counts[word]:
                    raise self._no_room(name, word, room)

    @contextmanager
    def placed(self, tokens: Mapping[str, torch.Tensor]) -> Iterator[Mapping[str, int]]:
        """Inside, the attacked encoders read soft tokens wherever they are given `self.text`.

        Other texts, such as a negative prompt, are read as ever.

        Args:
            tokens: Word -> embeddings `[k, d]`; those of several encoders side by side. Embeddings `[n, k, d]` are for
                n rows of the text, one after the other.

        Yields:
            Encoder -> rows of the text that it has read so far.
        """
        for word, vectors in tokens.items():
            if vectors.shape[-1] != sum(self.widths):
                wanted = " + ".join(
                    f"{width} of {name}" for name, width in zip(self.encoders, self.widths, strict=True)
                )
                raise ValueError(f"expected embeddings of {word!r} with {wanted} values, got {vectors.shape[-1]}")
        read = dict.fromkeys(self.encoders, 0)
        columns = {word: vectors.split(self.widths, dim=-1) for word, vectors in tokens.items()}
        with ExitStack() as stack:
            for place, name in enumerate(self.encoders):
                own = {word: parts[place] for word, parts in columns.items()}
                for module in _embeddings(module_of(self._pipe, name)):
                    hook = self._hook(name, own, read)
                    stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
            yield read

    def condition(self, tokens: Mapping[str, torch.Tensor]) -> Condition:
        """What the denoiser reads `[1]` of the prompt with these soft tokens, with gradients to them.

        One row for each of the first dimension of embeddings `[rows, k, d]`.

        Raises:
            ValueError: An encoder that did not get them, as the pipeline cuts the prompt before.
        """
        rows = max((len(vectors) for vectors in tokens.values() if vectors.dim() == 3), default=1)
        with self.placed(tokens) as read, quiet():
            condition = adaptor_of(self._pipe).encode(self._pipe, [self.text] * rows, self._skip)
        for name, count in read.items():
            if count != rows:
                raise self._no_room(name, next(iter(tokens)), 0)
        return condition

    def _hook(self, name: str, tokens: Mapping[str, torch.Tensor], read: dict[str, int]) -> Any:
        def put(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
            ids, rows = args[0] if args else kwargs["input"], 0
            for word, vectors in tokens.items():
                at = torch.isin(ids, torch.tensor(sorted(self._carriers[word].ids[name]), device=ids.device))
                whole = at.sum(dim=-1, keepdim=True) == self._counts[word]
                rows = int(whole.sum())
                source = vectors.to(output.device, output.dtype)
                if source.dim() == 3:
                    turn = torch.arange(read[name], read[name] + rows, device=source.device) % len(source)
                    source = source[turn].flatten(0, 1)
                else:
                    source = source.repeat(rows, 1)
                output = output.masked_scatter((at & whole).unsqueeze(-1), source) if rows else output
            read[name] += rows
            return output

        return put

    def _no_room(self, name: str, word: str, room: int) -> ValueError:
        return ValueError(
            f"expected room for {self._counts[word]} soft tokens of {word!r}, got {room}; the prompt is too long for "
            f"what {name} reads of it ({longest(tokenizer_of(self._pipe, name)) or 'at most'} tokens)"
        )


@dataclass(frozen=True)
class _Carrier:
    """A word in whose place soft tokens stand, and what each encoder takes it for."""

    text: str
    ids: Mapping[str, set[int]]


def _carriers(pipe: Any, encoders: Sequence[str], text: str, words: Sequence[str]) -> dict[str, _Carrier]:
    """For each word of a text another one, that the text and what the pipeline puts around it do not have."""
    rest = text
    for word in words:
        rest = rest.replace(word, " ")
    used = {name: set(_read(pipe, name, rest)) for name in encoders}
    tokenizers, carriers = {name: tokenizer_of(pipe, name) for name in encoders}, {}
    for word in words:
        carrier = carriers[word] = _carrier(tokenizers, used)
        used = {name: ids | carrier.ids[name] for name, ids in used.items()}
    return carriers


def _carrier(tokenizers: Mapping[str, Any], used: Mapping[str, set[int]]) -> _Carrier:
    """The first word that is one token of every encoder and not in use."""
    first = next(iter(tokenizers.values()))
    for token in range(len(first)):
        text = decode(first, torch.tensor([token]))
        ids = {name: forms(tokenizer, text) for name, tokenizer in tokenizers.items()} if text else {}
        if ids and all(own and not own & used[name] for name, own in ids.items()):
            return _Carrier(text, ids)
    raise ValueError("expected a token that is a word of its own beside those of the prompt, got none")


def _read(pipe: Any, name: str, text: str) -> list[int]:
    """Token ids that an encoder reads of a text, as its tokenizer cuts it.

    Of a language model, which is the only encoder of its pipeline, these are with the instructions around the text.
    """
    if len(encoders_of(pipe)) == 1 and not is_clip(module_of(pipe, name)):
        return _given(pipe, name, text)
    tokenizer = tokenizer_of(pipe, name)
    length = longest(tokenizer)
    options = {} if length is None else {"truncation": True, "max_length": length}
    ids: list[int] = tokenizer(converted(pipe, tokenizer, text), **options).input_ids
    return ids


class _Given(Exception):
    """What an encoder is given, which then does not run."""

    def __init__(self, ids: torch.Tensor) -> None:
        super().__init__()
        self.ids = ids


def _given(pipe: Any, name: str, text: str) -> list[int]:
    """Token ids that a pipeline gives its only encoder for a text."""

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Given(args[0] if args else kwargs["input"])

    with ExitStack() as stack, torch.no_grad(), quiet():
        for module in _embeddings(module_of(pipe, name)):
            stack.callback(module.register_forward_pre_hook(stop, with_kwargs=True).remove)
        try:
            adaptor_of(pipe).encode(pipe, [text])
        except _Given as given:
            ids: list[int] = given.ids.flatten().tolist()
            return ids
    raise ValueError(f"expected {type(pipe).__name__} to give a prompt to its {name}, got none")


def _embeddings(encoder: Any) -> list[nn.Module]:
    """The modules that look tokens up; T5 has its table in two of them."""
    table = encoder.get_input_embeddings().weight
    return [module for module in encoder.modules() if isinstance(module, nn.Embedding) and module.weight is table]


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, pipelines do not warn of a prompt that they cut."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
