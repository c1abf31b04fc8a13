"""State beside the denoiser's weights: which text encoders there are, adapters, hooks, and the disk cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from support.families.all import FAMILIES
from support.trained import METHODS

from erasers import Concept, Patch, PatchError, get_eraser
from erasers.files.cache import cache_dir
from erasers.models.readers import is_bare, text_readers

WORDS = ("red", "blue", "art", "shape", "moon", "van", "ring")
STAR = Concept("star", anchor="circle")
MANY = Concept("star", anchor="circle", preserve=[f"a {first} {second}" for first in WORDS for second in WORDS])


def add_adapter(pipe: Any) -> None:
    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    pipe.text_encoder.add_adapter(config)


def double(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return 2 * output


def fit(pipe: Any, **options: Any) -> Patch:
    return get_eraser("uce", **options).fit(pipe, STAR, progress=False)


@pytest.mark.filterwarnings("ignore:the prompt also reaches")
def test_an_encoder_that_was_not_there_at_the_fit_is_named(tmp_path: Path) -> None:
    pipe = FAMILIES["sd3"].build(tmp_path)
    third, tokenizer = pipe.text_encoder_3, pipe.tokenizer_3
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    patch = fit(pipe)
    assert patch.meta["readers"] == {"text_encoder": "plain", "text_encoder_2": "plain"}
    with patch.applied(pipe):
        pass
    pipe.text_encoder_3, pipe.tokenizer_3 = third, tokenizer
    with pytest.warns(UserWarning, match="without pipe.text_encoder_3, which reads the prompt here"):
        patch.apply(pipe)
    patch.remove(pipe)
    patch.save(tmp_path / "patch.safetensors")
    with pytest.warns(UserWarning, match="fit it anew"):
        Patch.load(tmp_path / "patch.safetensors").apply(pipe)


def test_an_encoder_that_is_gone_needs_no_word(tmp_path: Path) -> None:
    pipe = FAMILIES["sd3"].build(tmp_path)
    patch = fit(pipe)
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    patch.apply(pipe)


def test_adapters_that_are_on_at_one_time_alone_are_named(pipes: Callable[[str], Any]) -> None:
    pipe = pipes("sd1")
    plain = fit(pipe)
    add_adapter(pipe)
    adapted = fit(pipe)
    assert [patch.meta["readers"]["text_encoder"] for patch in (plain, adapted)] == ["plain", "adapters"]
    with pytest.warns(UserWarning, match="as loaded, which is with adapters that are on here"):
        plain.apply(pipe)
    plain.remove(pipe)
    with adapted.applied(pipe):
        pass
    pipe.text_encoder.disable_adapters()
    with plain.applied(pipe):
        pass
    with pytest.warns(UserWarning, match="with adapters that are on, which is as loaded here"):
        adapted.apply(pipe)


def test_hooks_of_others_are_named(pipes: Callable[[str], Any]) -> None:
    pipe = pipes("sd1")
    plain = fit(pipe)
    handle = next(iter(pipe.text_encoder.modules())).register_forward_pre_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="which is with hooks of others here"):
        plain.apply(pipe)
    handle.remove()
    plain.remove(pipe)
    plain.apply(pipe)


def test_hooks_of_patches_need_no_word(pipes: Callable[[str], Any]) -> None:
    pipe = pipes("sd1")
    first = get_eraser("uce").fit(pipe, Concept("moon", anchor="circle"), progress=False)
    second = fit(pipe)
    first.to_hooks(pipe).apply(pipe)
    second.apply(pipe)
    assert text_readers(pipe) == {"text_encoder": "plain"}


def test_what_counts_in_a_training_is_no_hook_of_others(pipe: Any) -> None:
    patch = get_eraser("esd", **METHODS["esd"], iterations=1, lr=1e-2).fit(pipe, STAR, progress=False)
    assert patch.meta["readers"] == text_readers(pipe) == {"text_encoder": "plain"}
    pipe.text_encoder.register_forward_hook(partial(double))
    assert text_readers(pipe) == {"text_encoder": "hooks"}


@pytest.mark.parametrize("wrong", [[], {"text_encoder": 3}, "plain"])
def test_damaged_readers_are_refused(wrong: Any, pipes: Callable[[str], Any]) -> None:
    patch = fit(pipes("sd1"))
    with pytest.raises(PatchError, match="readers"):
        Patch(patch.tensors, {**patch.meta, "readers": wrong})
    assert Patch(patch.tensors, {key: value for key, value in patch.meta.items() if key != "readers"})


def on_and_off(pipe: Any) -> None:
    add_adapter(pipe)
    get_eraser("rece").fit(pipe, MANY, progress=False)
    pipe.text_encoder.disable_adapters()


def rescaled(pipe: Any) -> None:
    on_and_off(pipe)
    pipe.text_encoder.enable_adapters()
    for module in pipe.text_encoder.modules():
        for name in getattr(module, "scaling", ()):
            module.scaling[name] = 0.25


def hooked(pipe: Any) -> None:
    get_eraser("rece").fit(pipe, MANY, progress=False)
    last = [module for module in pipe.text_encoder.modules() if isinstance(module, torch.nn.LayerNorm)][-1]
    last.register_forward_hook(double)


def in_half_precision(pipe: Any) -> None:
    get_eraser("rece").fit(pipe, MANY, progress=False)
    pipe.to(torch.float16)


@pytest.mark.parametrize("change", [on_and_off, rescaled, hooked, in_half_precision])
def test_the_cache_changes_no_patch(change: Callable[[Any], None], pipes: Callable[[str], Any]) -> None:
    pipe = pipes("sd1")
    change(pipe)
    stale, fresh = (get_eraser("rece", cache=cache).fit(pipe, MANY, progress=False) for cache in (True, False))
    for name in fresh.tensors:
        torch.testing.assert_close(stale.tensors[name], fresh.tensors[name], rtol=0, atol=1e-6)


def test_what_weights_do_not_say_is_not_cached(pipes: Callable[[str], Any]) -> None:
    pipe = pipes("sd1")
    assert is_bare(pipe.text_encoder)
    add_adapter(pipe)
    for switch in (pipe.text_encoder.enable_adapters, pipe.text_encoder.disable_adapters):
        switch()
        assert not is_bare(pipe.text_encoder)
        get_eraser("rece").fit(pipe, MANY, progress=False)
        assert not list(cache_dir().glob("preserve-*"))


def test_an_encoder_that_transformers_listens_to_is_cached(pipes: Callable[[str], Any]) -> None:
    pipe = pipes("sdxl")  # asks its encoders for hidden states, which transformers collects by hooks
    for _ in range(2):
        get_eraser("rece").fit(pipe, MANY, progress=False)
    assert len(list(cache_dir().glob("preserve-*"))) == 1
