"""The tokenizer of language models of this world: each word is one token."""

from __future__ import annotations

from typing import Any

from erasers.worlds.shapes.vocabulary import VOCABULARY

SPECIALS = ("<pad>", "<s>", "</s>", "<boi>", "<eoi>", "<image>", "<unk>")
LENGTH = 24
"""Tokens of the longest caption, with the start before it and one token behind it."""


def build_tokenizer() -> Any:
    """A tokenizer of transformers that begins every text with `<s>` and fills up on the left."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate((*SPECIALS, *VOCABULARY))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.add_special_tokens(list(SPECIALS))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+"), "removed", invert=True)
    core.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A"], special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=128,
        padding_side="left",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image>"},
        model_input_names=["input_ids", "attention_mask"],
    )
