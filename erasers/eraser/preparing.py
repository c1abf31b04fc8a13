"""What every method does before any work: concepts checked, as the pipeline reads them, and what is kept with them.

Contradictions are refused by `as_concepts`, which needs no pipeline.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from erasers.concept import Concept, Concepts, as_concepts
from erasers.concept.captions import ENOUGH, captions_without
from erasers.concept.words import mentions
from erasers.models.prompts import converted
from erasers.text.encoding import text_parts

_PARTICLES = ("van", "von", "de", "da", "di", "del", "der", "la", "le", "of", "the", "and", "in")
# CLIP and T5 have 1.1 to 1.2 tokens a word in ordinary text; an encoder that spells it letter by letter learns nothing.
_TOKENS_A_WORD = 1.5
_LONGEST = 100_000


def prepared(
    pipe: Any,
    concepts: Concepts,
    *,
    aliases: bool,
    captions: bool,
    max_length: int | None = None,
    parts: Sequence[tuple[str, Any, Any]] | None = None,
) -> tuple[Concept, ...]:
    """The concepts as a method should take them.

    Preserved texts that name their concept are left out, with a warning that counts them. On tokenizers that tell upper
    case from lower, the usual spellings of a name become aliases. A concept with few preserved texts of its own keeps
    everyday captions (`captions.txt`), where `captions` is on and the text encoders read them.

    Args:
        pipe: The pipeline that is erased.
        concepts: As `Eraser.fit` takes them.
        aliases: Whether the method erases aliases.
        captions: Whether it keeps everyday captions.
        max_length: Tokens that a prompt is cut to; None: the pipeline's default.
        parts: Name, tokenizer and model of what reads text; None: the text encoders of a pipeline of diffusers.

    Raises:
        ValueError: Contradictions, or an anchor that the pipeline reads as the concept itself.
    """
    readers = [_Tokens(pipe, *encoder, max_length) for encoder in (text_parts(pipe) if parts is None else parts)]
    given = [_without_itself(concept) for concept in as_concepts(concepts)]
    for concept in given:
        _check_names(concept, concept.terms(aliases=aliases), readers)
    spelled = [_spelled(concept, readers) for concept in given] if aliases else given
    if not captions:
        return tuple(spelled)
    kept = [text for text in captions_without(spelled) if all(reader.reads(text) for reader in readers)]
    return tuple(
        concept
        if len(concept.preserve) >= ENOUGH
        else replace(concept, preserve=tuple(dict.fromkeys((*concept.preserve, *kept))))
        for concept in spelled
    )


class _Tokens:
    """How one text encoder of a pipeline reads text.

    Args:
        pipe: The pipeline.
        name: Component of the text encoder.
        tokenizer: Its tokenizer, or the processor that has it.
        model: The text encoder.
        length: Tokens that a prompt is cut to; None: the pipeline's default. CLIP has a length of its own.
    """

    def __init__(self, pipe: Any, name: str, tokenizer: Any, model: Any, length: int | None) -> None:
        self.pipe, self.name, self.tokenizer = pipe, name, getattr(tokenizer, "tokenizer", tokenizer)
        own = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        usual = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
        if "CLIP" not in type(model).__name__ and usual is not None:
            own = length or usual.default
        self.length = min(int(self.tokenizer.model_max_length), int(own or self.tokenizer.model_max_length))

    def ids(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text as the pipeline has it encoded, uncut."""
        # A length that is given keeps tokenizers from warning of one that is too long for the model.
        options = {"truncation": True, "max_length": _LONGEST, "add_special_tokens": special}
        ids: Any = self.tokenizer([converted(self.pipe, self.tokenizer, text)], **options)["input_ids"][0]
        return [int(number) for number in ids]

    def unread(self, text: str) -> str:
        """The end of a text that is cut off before it is encoded; "" when nothing is."""
        whole, ids = self.ids(text, special=True), self.ids(text)
        room = self.length - (len(whole) - len(ids))
        return str(self.tokenizer.decode(ids[room:])).strip() if len(ids) > room else ""

    def knows(self, text: str) -> bool:
        """Whether each part of a text is in the vocabulary."""
        return getattr(self.tokenizer, "unk_token_id", None) not in self.ids(text)

    def reads(self, text: str) -> bool:
        """Whether a text is read whole and in words."""
        few = len(self.ids(text)) <= _TOKENS_A_WORD * len(text.split())
        return few and self.knows(text) and not self.unread(text)

    def adds(self, text: str) -> bool:
        """Whether a text has a token that was added to the vocabulary, as those of textual inversions are."""
        return any(token in text for token in getattr(self.tokenizer, "get_added_vocab", dict)())


def _check_names(concept: Concept, terms: Sequence[str], readers: Sequence[_Tokens]) -> None:
    """Warn of lists that were taken for one name and of text that is not read; refuse an anchor that changes nothing.

    Raises:
        ValueError: Such an anchor.
    """
    for term in terms:
        if re.search("[,;]", term):
            warnings.warn(f"{term!r} is one concept with a comma in it; for several, repeat --concept", stacklevel=3)
        if [reader.ids(term) for reader in readers] == [reader.ids(concept.anchor) for reader in readers]:
            raise ValueError(
                f"expected anchors that differ from the concepts, got {concept.anchor!r} for {term!r}, which are the "
                "same tokens to this pipeline"
            )
    for reader in readers:
        for text in (*terms, concept.anchor):
            if cut := reader.unread(text):
                warnings.warn(
                    f"the {reader.name} reads {reader.length} tokens: {cut!r} at the end of {text!r} is cut off, "
                    "as if it were not there",
                    stacklevel=3,
                )
        if count := sum(bool(reader.unread(text)) for text in concept.preserve):
            warnings.warn(
                f"the {reader.name} reads {reader.length} tokens: {count} preserved texts are longer and kept without "
                "their ends",
                stacklevel=3,
            )


def _spelled(concept: Concept, readers: Sequence[_Tokens]) -> Concept:
    """The concept with the usual spellings of its names as aliases, where they are other tokens."""
    seen = {tuple(tuple(reader.ids(term)) for reader in readers) for term in concept.terms()}
    more = []
    for term in concept.terms():
        if any(reader.adds(term) for reader in readers):
            continue
        for spelling in spellings(term):
            tokens = tuple(tuple(reader.ids(spelling)) for reader in readers)
            if tokens not in seen and all(reader.knows(spelling) for reader in readers):
                seen.add(tokens)
                more.append(spelling)
    return replace(concept, aliases=(*concept.aliases, *more))


def _without_itself(concept: Concept) -> Concept:
    """The concept without preserved texts that name it."""
    kept = tuple(text for text in concept.preserve if not any(mentions(text, term) for term in concept.terms()))
    if left_out := len(concept.preserve) - len(kept):
        warnings.warn(
            f"{left_out} preserved texts name {concept.name!r} and are left out; what is erased cannot be kept",
            stacklevel=3,
        )
    return replace(concept, preserve=kept)


def spellings(term: str) -> tuple[str, ...]:
    """The usual ways in which a name is written: van gogh, Van Gogh, van Gogh, Van gogh, VAN GOGH."""
    low = term.lower()
    words = low.split()
    titled = [word[:1].upper() + word[1:] for word in words]
    named = [word if word in _PARTICLES else title for word, title in zip(words, titled, strict=True)]
    inner = [*titled[:1], *named[1:]]
    forms = [low, *(" ".join(form) for form in (titled, named, inner)), low[:1].upper() + low[1:], low.upper()]
    return tuple(dict.fromkeys(forms))
