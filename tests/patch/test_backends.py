"""A patched pipeline gives the same picture under each implementation of attention that the machine offers.

Two implementations round differently. The difference that this makes has to be of the same size with a patch and
without, and far below what the patch does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models import attention_processor
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend
from support.families.all import FAMILIES
from support.families.base import draw
from support.selection import diagonal
from torch.nn.attention import SDPBackend, sdpa_kernel

from erasers import Concept, Patch, get_eraser

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:text also enters time_extra_emb"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]

STAR = Concept("star", anchor="circle", preserve=["moon"])
UCE = get_eraser("uce", rows="all", preserve_rows="all", ridge=1e-4, cache=False)

# Families whose attention goes through diffusers' choice of back ends; that of the others calls torch at once.
CHOOSING = ("flux", "flux2", "chroma", "qwenimage", "wan", "zimage", "prx")
TORCH = ("sd1", "sdxl", "sd3", "sd35", "auraflow", "pixart", "hunyuandit", "luminanext", "lumina2", "cogview4")
ON_CPU = ("native", "_native_math", "_native_flash")
# Those of the Hub run code that they download.
ELSEWHERE = [
    name
    for name in (backend.value for backend in AttentionBackendName)
    if name not in ON_CPU and not name.endswith("_hub")
]
CASES = [
    *((family, name) for family in CHOOSING for name in ON_CPU),
    ("flux", "flex"),  # slow on a CPU
    *(pytest.param(family, name, marks=pytest.mark.gpu) for family in CHOOSING for name in ELSEWHERE),
]
KERNELS = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION] + [
    pytest.param(kernel, marks=pytest.mark.gpu)
    for kernel in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)
]


class Studio:
    """A pipeline, a patch for it, and the pictures without and with the patch as torch draws them by default."""

    def __init__(self, family: str, folder: Path, device: str = "cpu") -> None:
        self.options = FAMILIES[family].options
        self.pipe = FAMILIES[family].build(folder)
        self.denoiser = getattr(self.pipe, "unet", None) or self.pipe.transformer
        self.patch: Patch = UCE.fit(self.pipe, STAR)
        if device != "cpu":
            # In float32, which few kernels take, there would be little to compare.
            self.pipe.to(device, torch.bfloat16)
        self.plain, self.erased = self.draw(), self.draw(self.patch)

    def draw(self, patch: Patch | None = None) -> torch.Tensor:
        with patch.applied(self.pipe, force=True) if patch else nullcontext():
            return draw(self.pipe, "a picture of star", self.options).float().cpu()

    def check(self, *patches: Patch) -> None:
        """The pictures of the implementation that is on now, by each form of the patch."""
        effect, scale = distance(self.plain, self.erased), self.plain.abs().max().item()
        rounding = distance(self.draw(), self.plain)
        assert effect > 1e-2
        assert rounding < 0.1 * effect
        for patch in patches or (self.patch,):
            assert distance(self.draw(patch), self.erased) <= 4 * rounding + 1e-5 * scale


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return (left - right).abs().max().item()


@pytest.fixture(scope="module")
def studios(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Studio]:
    built: dict[tuple[str, str], Studio] = {}

    def build(family: str, device: str = "cpu") -> Studio:
        if (family, device) not in built:
            with attention_backend("native"):
                built[family, device] = Studio(family, tmp_path_factory.mktemp(family), device)
        return built[family, device]

    return build


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    if request.node.get_closest_marker("gpu") is None:
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU of CUDA")
    return "cuda"


@contextmanager
def chosen(denoiser: Any, name: str) -> Iterator[None]:
    """`set_attention_backend`, which also sets the back end of every other model, and back."""
    before = _AttentionBackendRegistry._active_backend
    try:
        denoiser.set_attention_backend(name)
        yield
    finally:
        denoiser.reset_attention_backend()
        _AttentionBackendRegistry.set_active_backend(before)


@contextmanager
def offered(studio: Studio, way: AbstractContextManager[Any], device: str) -> Iterator[None]:
    """Under an implementation of attention; where a GPU lacks it, the test is skipped with the reason."""
    with ExitStack() as stack:
        try:
            stack.enter_context(way)
            studio.draw()
        except Exception as error:
            if device == "cpu" and "`attn_mask` is not supported" not in str(error):
                raise
            pytest.skip(f"not offered: {type(error).__name__}: {error}")
        yield


@pytest.mark.parametrize(("family", "name"), CASES)
def test_back_ends_of_diffusers(studios, family, name, device):
    studio = studios(family, device)
    with offered(studio, chosen(studio.denoiser, name), device):
        studio.check()
        studio.patch.apply(studio.pipe, force=True)
    # Switched on after the patch, by the other way.
    try:
        with offered(studio, attention_backend(name), device):
            assert distance(studio.draw(), studio.erased) < 0.1 * distance(studio.plain, studio.erased)
    finally:
        studio.patch.remove(studio.pipe)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", TORCH)
def test_kernels_of_torch(studios, family, kernel, device):
    studio = studios(family, device)
    with offered(studio, sdpa_kernel(kernel), device):
        studio.check()


@contextmanager
def processors(denoiser: Any, processor: Any) -> Iterator[None]:
    """Every attention of a denoiser by one processor, and back."""
    before = denoiser.attn_processors
    denoiser.set_attn_processor(processor)
    yield
    denoiser.set_attn_processor(before)


def xformers_in_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_bias: Any = None, **_: Any) -> Any:
    """What xformers computes, `[batch, tokens, channels]`."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias)


PROCESSORS = {
    "AttnProcessor": attention_processor.AttnProcessor,
    "AttnProcessor2_0": attention_processor.AttnProcessor2_0,
    "SlicedAttnProcessor": lambda: attention_processor.SlicedAttnProcessor(1),
    "XFormersAttnProcessor": attention_processor.XFormersAttnProcessor,
}


@pytest.mark.parametrize(("family", "name"), diagonal(["sd1", "sd2", "sdxl", "pixart"], PROCESSORS))
def test_processors(studios, monkeypatch, family, name):
    """In every form of the patch: edited weights, and hooks in front of layers."""
    studio = studios(family)
    ops = SimpleNamespace(memory_efficient_attention=xformers_in_torch)
    monkeypatch.setattr(attention_processor, "xformers", SimpleNamespace(ops=ops))
    hooks = studio.patch.to_hooks(studio.pipe)
    assert distance(studio.draw(hooks), studio.erased) < 1e-4
    with processors(studio.denoiser, PROCESSORS[name]()):
        studio.check(studio.patch, hooks)
        studio.patch.apply(studio.pipe)
    assert torch.equal(studio.draw(), studio.erased)
    with processors(studio.denoiser, PROCESSORS[name]()):
        assert distance(studio.draw(), studio.erased) < 1e-4
    studio.patch.remove(studio.pipe)
    assert torch.equal(studio.draw(), studio.plain)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_attention_slicing(studios, family):
    studio = studios(family)
    studio.pipe.enable_attention_slicing(1)
    studio.check()
    studio.patch.apply(studio.pipe)
    studio.pipe.disable_attention_slicing()
    assert distance(studio.draw(), studio.erased) < 1e-4
    studio.patch.remove(studio.pipe)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_xformers(studios, family, device):
    pytest.importorskip("xformers", reason="needs the extra [xformers]")
    studio = studios(family, device)
    with ExitStack() as stack:
        stack.callback(studio.pipe.disable_xformers_memory_efficient_attention)
        try:
            studio.pipe.enable_xformers_memory_efficient_attention()
            studio.draw()
        except (ValueError, NotImplementedError) as error:
            pytest.skip(f"not offered: {error}")
        studio.check()
        studio.pipe.disable_xformers_memory_efficient_attention()
        with studio.patch.applied(studio.pipe, force=True):
            studio.pipe.enable_xformers_memory_efficient_attention()
            assert distance(studio.draw(), studio.erased) < 0.1 * distance(studio.plain, studio.erased)


def test_xformers_are_refused_by_diffusers_without_a_gpu(studios):
    """And leave a patched pipeline as it is."""
    studio = studios("sd1")
    with studio.patch.applied(studio.pipe):
        with pytest.raises((ModuleNotFoundError, ValueError), match=r"xformers|cuda"):
            studio.pipe.enable_xformers_memory_efficient_attention()
        assert torch.equal(studio.draw(), studio.erased)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux", "qwenimage"])
def test_text_encoders_may_compute_attention_in_any_way(studios, family):
    """A patch fitted under another implementation draws the same picture."""
    studio = studios(family)
    encoders = [part for name, part in studio.pipe.components.items() if name.startswith("text_encoder")]
    before = [encoder.config._attn_implementation for encoder in encoders]
    for encoder in encoders:
        encoder.set_attn_implementation("eager")
    other = UCE.fit(studio.pipe, STAR)
    studio.check()
    effect = distance(studio.plain, studio.erased)
    # The equations that are solved for a patch amplify what differs.
    assert other.digest != studio.patch.digest
    assert distance(studio.draw(other), studio.erased) < 1e-3 * effect
    for encoder, implementation in zip(encoders, before, strict=True):
        encoder.set_attn_implementation(implementation)
