"""Joint attention over many equal rows of text at the price of one."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class LastRowRepeated:
    """Joint attention in which the last row of the text stands for `count` equal ones.

    Rows of text have no place, so equal ones stay equal in every block, and to attend to all of them is to attend to
    one whose logit is larger by log(count).

    Attributes:
        count: May change from call to call, and need not be whole.
    """

    def __init__(self, count: float) -> None:
        self.count = count

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: None = None
    ) -> tuple[Tensor, Tensor]:
        """Picture [n, p, d] and text [n, t, d] after attention over both."""

        def heads(picture: Tensor, text: Tensor) -> list[Tensor]:
            return [rows.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for rows in (picture, text)]

        picture, text = hidden_states, encoder_hidden_states
        queries = heads(attn.to_q(picture), attn.add_q_proj(text))
        keys = heads(attn.to_k(picture), attn.add_k_proj(text))
        query = torch.cat([attn.norm_q(queries[0]), attn.norm_added_q(queries[1])], dim=2)
        key = torch.cat([attn.norm_k(keys[0]), attn.norm_added_k(keys[1])], dim=2)
        value = torch.cat(heads(attn.to_v(picture), attn.add_v_proj(text)), dim=2)
        more = F.pad(picture.new_zeros(1, key.shape[2] - 1), (0, 1), value=math.log(self.count))
        rows = F.scaled_dot_product_attention(query, key, value, attn_mask=more).transpose(1, 2).flatten(2)
        picture, text = rows[:, : picture.shape[1]], rows[:, picture.shape[1] :]
        return attn.to_out[0](picture), text if attn.context_pre_only else attn.to_add_out(text)
