"""Token ids: which can be typed, and which are nearest."""

from __future__ import annotations

from typing import Any

import torch
from support.attacking import seeded

from erasers.diffusion.tokens import decode, nearest_tokens, whole_words


def test_whole_words_come_back_from_their_text(pipe: Any) -> None:
    words = whole_words(pipe.tokenizer)
    assert set(pipe.tokenizer("star moon red q", add_special_tokens=False).input_ids) <= set(words.tolist())
    assert not set(words.tolist()) & set(pipe.tokenizer.all_special_ids)
    piece = pipe.tokenizer.convert_tokens_to_ids("sta")
    assert piece not in words
    some = words[torch.randperm(len(words), generator=seeded())[:8]]
    assert pipe.tokenizer(decode(pipe.tokenizer, some), add_special_tokens=False).input_ids == some.tolist()
    # Pieces join to another word.
    pieces = torch.tensor([piece, pipe.tokenizer.convert_tokens_to_ids("r</w>")])
    assert pipe.tokenizer(decode(pipe.tokenizer, pieces), add_special_tokens=False).input_ids != pieces.tolist()


def test_nearest_tokens_go_by_cosine() -> None:
    table = torch.tensor([[10.0, 9.0], [1.0, 0.0], [0.0, 1.0]])
    vectors = torch.tensor([[3.0, 0.2], [0.1, 5.0]])
    assert nearest_tokens(vectors, table).tolist() == [1, 2]
    assert nearest_tokens(vectors, table[[0, 2]]).tolist() == [0, 1]


def test_nearest_tokens_of_several_encoders_go_by_all_of_them() -> None:
    # By cosine of the whole, the large numbers of the second encoder would decide alone.
    table = torch.tensor([[1.0, 0.0, 90.0, 10.0], [0.0, 1.0, 100.0, 0.0]])
    vectors = torch.tensor([[1.0, 0.0, 100.0, 0.0]])
    assert nearest_tokens(vectors, table).tolist() == [1]
    assert nearest_tokens(vectors, table, [2, 2]).tolist() == [0]
