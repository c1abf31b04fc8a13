"""Sparse autoencoders for tiny pipelines, made by hand: a feature for each word in each context, as it ends there.

Their text encoders are causal, so that this row depends on nothing behind the word. Being random, they have no
direction for a word in every context: fit with `OPTIONS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from erasers.sae.autoencoder import SAE, save_sae
from erasers.sae.text_blocks import Block, find_blocks

WORDS = ("star", "pentagram", "circle", "ring", "moon", "art")
BEFORE = ("", "a ", "a red ", "a picture of ")
AFTER = ("", " art")
OPTIONS = {"often": 0.0, "templates": ("{}", "a {}", "a picture of {}")}


def save_saes(pipe: Any, folder: Path) -> tuple[str, ...]:
    """A file for each text encoder of a pipeline."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for block in find_blocks(pipe):
        paths.append(str(folder / f"{block.name}.safetensors"))
        save_sae(paths[-1], by_hand(block), target=block.target, base=block.fingerprints(), about={})
    return tuple(paths)


def by_hand(block: Block) -> SAE:
    """Every feature is 1 on its row, and 0 on the others of these prompts; rows that no plane parts so have none."""
    heads = [before + word for before in BEFORE for word in WORDS]
    ends = [len(block.tokenizer(head)["input_ids"]) - 2 for head in heads]
    wanted = block.outputs(heads)[torch.arange(len(heads)), ends].double()
    rows = block.outputs([head + after for head in heads for after in AFTER] + [""])[:, 1:].flatten(0, 1).double()
    mean = rows.mean(dim=0)
    spread = (rows - mean).T @ (rows - mean) / len(rows)
    spread += 1e-6 * spread.trace() * torch.eye(len(spread))
    planes = torch.linalg.solve(spread, (wanted - mean).T).T
    own = (planes * (wanted - mean)).sum(dim=1)
    answers = planes @ (rows - mean).T
    other = answers.masked_fill(torch.cdist(wanted, rows) < 1e-3, -torch.inf).amax(dim=1)
    kept = other < 0.98 * own
    scale = (2 / (own - other))[kept, None]
    sae = SAE(rows.shape[1], int(kept.sum()), 2)
    sae.encoder.data = (scale * planes[kept]).float()
    sae.b_pre.data = mean.float()
    sae.b_lat.data = (-scale[:, 0] * (own + other)[kept] / 2).float()
    sae.decoder.data = torch.nn.functional.normalize((wanted - mean)[kept], dim=1).float()
    sae.threshold.fill_(0.2)
    return sae


def embed(pipe: Any, *prompts: str) -> torch.Tensor:
    """What the pipeline makes of prompts, [n, L, d]."""
    with torch.no_grad():
        states: torch.Tensor = pipe.encode_prompt(
            prompt=list(prompts), device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )[0]
    return states
