"""What tests of all trained methods share: each one's options on a tiny pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from erasers import Concept, Patch
from erasers.diffusion.conditions import conditions
from erasers.diffusion.denoiser import predict
from erasers.files.checkpoint import CheckpointFile
from erasers.training.loop import TrainedEraser
from erasers.training.student import Student
from support.adapters import tiny_adapter
from support.families.all import FAMILIES

STAR = Concept("star", anchor="circle", preserve=["a moon", "a red circle", "blue art"], neighbours=["ring"])
METHODS: dict[str, dict[str, Any]] = {
    "ablation": {"steps": 2, "pictures": 4, "kept": 2, "batch": 2},
    "adv_unlearn": {"steps": 2, "pictures": 2, "kept": 4, "attack_steps": 2, "attack_lr": 1e-2, "warm_up": 1},
    "co_erasing": {"adapter": tiny_adapter(), "images": 2, "steps": 2, "pictures": 2, "refresh": 2},
    "concept_slider": {"steps": 2, "batch": 2, "refresh": 2},
    "doco": {"warm_up": 1, "batch": 2, "pictures": 4, "kept": 2, "steps": 2, "width": 8},
    "esd": {"steps": 2, "pictures": 2, "refresh": 2},
    "few_shot": {"steps": 2, "pictures": 2, "kept": 4, "max_drift": 10.0},
    "geom_erasing": {"steps": 2, "pictures": 4, "batch": 2, "grid": 2},
    "hirm": {"kept": 4, "kept_batch": 2},
    "spm": {"steps": 2, "pictures": 2, "refresh": 2, "kept": 4, "anchors": 2},
    "stereo": {"steps": 2, "pictures": 2, "rounds": 1, "search_iterations": 1, "attack_steps": 2},
    "eraseflow": {"steps": 4, "batch": 2, "random_steps": 1, "last_steps": 1},
    "mace": {"steps": 2, "pictures": 2, "batch": 2, "templates": ("{}", "a {} here")},
    "receler": {"steps": 2, "pictures": 2, "refresh": 2, "attack_steps": 2, "vectors": 2},
    "robust_ablation": {"steps": 2, "pictures": 4, "kept": 4, "noises": 2, "batch": 2, "kept_batch": 2, "bank": 4},
    "salun": {"steps": 2, "pictures": 4, "kept": 2, "batch": 2},
    "safe": {"steps": 2, "pictures": 2, "refresh": 2},
}
ONE_RANK = {"concept_slider": 2, "receler": 2, "spm": 2, "salun": 0, "mace": 1}
"""A slider has low-rank weights alone, adapters have a rank, a mask is of whole weights, additions have one each."""
RANKS = [(name, rank) for name in METHODS for rank in ((ONE_RANK[name],) if name in ONE_RANK else (0, 2))]
"""Each with whole weights and with low-rank ones."""

NOW: dict[str, Any] = {"progress": False, "seconds_between_checkpoints": 0.0}
"""A checkpoint after every iteration."""


class Killed(BaseException):
    """Stands for the end of a process."""


@contextmanager
def killed_after(iterations: int) -> Iterator[None]:
    """Inside, a training ends as a killed process does, once its checkpoint has so many iterations."""
    save = CheckpointFile.save

    def killed(file: CheckpointFile, state: Callable[[], Any], *agree: Any) -> None:
        save(file, state, *agree)
        if len(state()["losses"]) == iterations:
            raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(CheckpointFile, "save", killed)
        with pytest.raises(Killed):
            yield


def fitted_in_two_goes(eraser: TrainedEraser, pipe: Any, concept: Concept, path: Path, iterations: int) -> Patch:
    """The patch of a training that is killed after so many iterations and goes on from its checkpoint."""
    with killed_after(iterations):
        eraser.fit(pipe, concept, checkpoint=path, **NOW)
    return eraser.fit(pipe, concept, progress=False, checkpoint=path)


def family_pipe(family: str, folder: Path) -> Any:
    """A tiny pipeline that draws 16 by 16 pixels and lets T5, where it has one, read sixteen tokens."""
    pipe = FAMILIES[family].build(folder)
    pipe.set_progress_bar_config(disable=True)
    if "max_sequence_length" in inspect.signature(pipe.encode_prompt).parameters:
        pipe.encode_prompt = partial(pipe.encode_prompt, max_sequence_length=16)
    if hasattr(pipe, "default_sample_size"):
        pipe.default_sample_size = 8
    return pipe


@torch.no_grad()
def probe(pipe: Any, student: Student) -> torch.Tensor:
    """What the pipeline predicts with the student's weights, always from the same noise."""
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(11)).to(pipe.unet.device)
    with student.placed():
        return predict(pipe, noise, torch.tensor([50]), conditions(pipe, ["a star"]))
