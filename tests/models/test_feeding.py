"""What the denoiser reads of its text encoders, held to gradients; what an edit leaves open is told by name."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.families.all import FAMILIES
from support.selection import only

from erasers import Concept, get_eraser
from erasers.diffusion.adaptors.table import adaptor_of
from erasers.models.encoder_blocks import blocks_of, in_block, is_behind, plain_path
from erasers.models.feeding import feeds_of, warn_of_missed_encoders


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Tiny pipelines of any family, each of which all tests share and leave as it is."""
    return functools.cache(lambda family: FAMILIES[family].build(tmp_path_factory.mktemp(family)))


STAR = Concept("star", anchor="circle", preserve=["a moon", "blue"])
DRAWABLE = (
    "sd1",
    "sd2",
    "sdxl",
    "sd3",
    "flux",
    "chroma",
    "qwenimage",
    "zimage",
    "lumina2",
    "cogview4",
    "sana",
    "auraflow",
)


def reached(pipe: Any, name: str, values: list[torch.Tensor]) -> set[str]:
    """Paths of the modules of a text encoder that have a say in values."""
    named = dict(getattr(pipe, name).named_parameters())
    total = torch.stack([value.double().square().sum() for value in values]).sum()
    slopes = torch.autograd.grad(total, list(named.values()), allow_unused=True, retain_graph=True)
    return {path.rpartition(".")[0] for path, slope in zip(named, slopes, strict=True) if slope is not None}


@pytest.mark.parametrize("family", DRAWABLE)
def test_the_blocks_that_are_read_are_those_with_gradients(pipes: Any, family: str) -> None:
    pipe = pipes(family)
    adaptor, feeds = adaptor_of(pipe), feeds_of(pipe)
    assert list(feeds) == [name for name in adaptor.encoders if getattr(pipe, name, None) is not None]
    for name in feeds:
        getattr(pipe, name).requires_grad_(True)
    condition = adaptor.encode(pipe, ["a star"])
    for name, feed in feeds.items():
        written = adaptor.written(pipe, condition, name)
        assert len(written) == (feed.tokens is not None) + feed.pooled
        paths = [reached(pipe, name, [value]) for value in written]
        numbers = [max(place.number for path in own if (place := in_block(plain_path(path)))) + 1 for own in paths]
        assert numbers == [feed.tokens] * (feed.tokens is not None) + [feed.depth] * feed.pooled
        assert feed.depth == len(blocks_of(getattr(pipe, name)))
        assert any(is_behind(path) for path in set().union(*paths)) == feed.normed


@torch.no_grad()
@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_what_an_encoder_wrote_is_what_moves_with_it(pipes: Any, family: str) -> None:
    pipe = pipes(family)
    adaptor = adaptor_of(pipe)
    before = adaptor.encode(pipe, ["a star"])
    for edited in feeds_of(pipe):
        written = {name: adaptor.written(pipe, before, name) for name in feeds_of(pipe)}
        encoder = getattr(pipe, edited)
        originals = {name: value.clone() for name, value in encoder.state_dict().items()}
        for parameter in encoder.parameters():
            parameter.mul_(1.1)
        after = adaptor.encode(pipe, ["a star"])
        encoder.load_state_dict(originals)
        for name, values in written.items():
            now = adaptor.written(pipe, after, name)
            assert [torch.equal(*pair) for pair in zip(values, now, strict=True)] == [name != edited] * len(values)


def test_clip_skip_leaves_out_blocks_of_clip_and_of_nothing_else(pipes: Any) -> None:
    assert [feed.tokens for feed in feeds_of(pipes("sd1"), 1).values()] == [1]
    assert [(feed.tokens, feed.blocks) for feed in feeds_of(pipes("sdxl"), 1).values()] == [(0, 0), (0, 2)]
    assert [feed.tokens for feed in feeds_of(pipes("sd3"), 1).values()] == [0, 0, 2]


def told(pipe: Any, edited: set[str]) -> list[str]:
    """The components that are warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_missed_encoders(pipe, edited)
    return [str(warning.message).partition(" ")[0] for warning in caught]


@pytest.mark.parametrize(
    ("family", "edited", "missed"),
    [
        ("sd1", {"text_encoder"}, []),
        ("sdxl", {"text_encoder"}, ["pipe.text_encoder_2"]),
        ("sdxl", {"text_encoder_2"}, ["pipe.text_encoder"]),
        ("sdxl", {"unet"}, []),
        ("sd3", {"text_encoder", "text_encoder_2"}, ["pipe.text_encoder_3"]),
        ("sd3", {"text_encoder", "transformer"}, []),
        ("flux", {"text_encoder"}, ["pipe.text_encoder_2"]),
        ("chroma", {"text_encoder"}, []),
    ],
)
def test_encoders_that_an_edit_misses_are_named(pipes: Any, family: str, edited: set[str], missed: list[str]) -> None:
    assert told(pipes(family), edited) == missed


@pytest.mark.parametrize(
    ("family", "ports", "message"),
    [
        ("flux", ("text",), r"the pooled ports are not edited, .* its summary of the prompt from pipe\.text_encoder;"),
        ("flux", ("pooled",), r"the text ports are not edited, .* its tokens from pipe\.text_encoder_2;"),
        ("sd3", ("joint",), r"the pooled ports are not edited, .* from pipe\.text_encoder and pipe\.text_encoder_2;"),
    ],
)
def test_ports_that_a_closed_form_misses_are_named(pipes: Any, family: str, ports: Any, message: str) -> None:
    eraser = get_eraser("uce", ports=ports, cache=False, everyday=False, max_sequence_length=16)
    with pytest.warns(UserWarning, match=message):
        eraser.fit(pipes(family), STAR)


@pytest.mark.parametrize("family", only(["sdxl", "flux"], "flux"))
def test_the_usual_ports_are_not_warned_of(pipes: Any, family: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_eraser("uce", cache=False, everyday=False).fit(pipes(family), STAR)


def test_every_family_in_the_tests_says_what_it_reads(pipes: Any) -> None:
    for family in FAMILIES:
        pipe = pipes(family)
        for name, feed in feeds_of(pipe).items():
            assert feed.depth > 0, f"{family}: {name}"
            assert feed.blocks > 0, f"{family}: {name}"
