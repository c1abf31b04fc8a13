"""What a patch of hooks has to live through, whatever its kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from erasers import ErasedPipeline, Patch, load_pipeline
from support.tiny import draw, same, weights

UNGUIDED = {"guidance_scale": 1.0}
TWICE = {"num_images_per_prompt": 2}


def difference(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


def check_leaves_alone(pipe: Any, patch: Patch, kept: Sequence[str], *more: dict[str, Any]) -> None:
    """Kept prompts stay bit for bit, guided or not, alone and in a batch, with several pictures of each."""
    calls = [({}, list(kept)), (UNGUIDED, list(kept)), (TWICE, [kept[0]]), *((options, [kept[0]]) for options in more)]
    before = [draw(pipe, prompts, **options) for options, prompts in calls]
    with patch.applied(pipe):
        for plain, (options, prompts) in zip(before, calls, strict=True):
            assert torch.equal(draw(pipe, prompts, **options), plain), (options, prompts)


def check_in_any_company(pipe: Any, patch: Patch, asked: str, kept: str) -> None:
    """In a batch the one prompt changes and the other stays bit for bit, in either order."""
    for prompts, place in (([asked, kept], 0), ([kept, asked], 1)):
        plain = draw(pipe, prompts, **UNGUIDED)
        with patch.applied(pipe):
            erased = draw(pipe, prompts, **UNGUIDED)
        assert torch.equal(erased[1 - place], plain[1 - place])
        assert difference(erased[place], plain[place]) > 1e-4


def check_lives_on(pipe: Any, patch: Patch, asked: str, folder: Path, tolerance: float = 2e-5) -> None:
    """Fitting and taking off leave the pipeline as it was; files, folders and offloading keep it."""
    before, plain = weights(pipe), draw(pipe, asked)
    patch.save(folder / "patch.safetensors")
    loaded = Patch.load(folder / "patch.safetensors")
    assert loaded.digest == patch.digest
    loaded.apply(pipe)
    assert same(before, weights(pipe))
    erased = draw(pipe, asked)
    assert difference(erased, plain) > 1e-4
    assert torch.equal(draw(pipe, asked), erased)
    ErasedPipeline.save_pretrained(pipe, folder / "folder", [loaded])
    assert difference(draw(load_pipeline(folder / "folder"), asked), erased) < tolerance
    pipe.enable_model_cpu_offload(device="cpu")
    assert difference(draw(pipe, asked), erased) < tolerance
    pipe.remove_all_hooks()
    loaded.remove(pipe)
    assert torch.equal(draw(pipe, asked), plain)


def check_compiled(pipe: Any, patch: Patch, asked: str) -> None:
    """Compiled code does what plain code does, whichever was first."""
    with patch.applied(pipe):
        erased = draw(pipe, asked)
        pipe.unet.compile(backend="eager")
        torch.testing.assert_close(draw(pipe, asked), erased)
    plain = draw(pipe, asked)
    assert difference(erased, plain) > 1e-4
    with patch.applied(pipe):
        torch.testing.assert_close(draw(pipe, asked), erased)
