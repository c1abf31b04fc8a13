"""Every family: its ports, how it encodes prompts, and how exactly an edit of its ports moves a prompt to another."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families.all import FAMILIES
from support.families.base import draw
from support.tiny import same, weights

from erasers import Concept, get_eraser
from erasers.closed_form.preserved import states_for
from erasers.models.families import FAMILIES as TABLE
from erasers.models.ports import Group, find_family, port_groups
from erasers.text.encoding import Reader
from erasers.text.prompts import fill, whole

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:text also enters:UserWarning"),
]

# Family -> kind -> (ports, input width) of each group.
PORTS: dict[str, dict[str, list[tuple[int, int]]]] = {
    "sd1": {"text": [(8, 32)]},
    "sd2": {"text": [(8, 48)]},
    "sdxl": {"text": [(16, 40)], "pooled": [(1, 40)]},
    "sd3": {"text": [(1, 64)], "pooled": [(1, 64)], "joint": [(4, 32)]},
    "sd35": {"text": [(1, 64)], "pooled": [(1, 64)], "joint": [(4, 32)]},
    "flux": {"text": [(1, 64)], "pooled": [(1, 64)], "joint": [(2, 32)]},
    "flux2": {"text": [(1, 192)], "joint": [(4, 32)]},
    "chroma": {"text": [(1, 64)], "joint": [(2, 32)]},
    "auraflow": {"text": [(1, 64)], "joint": [(4, 32)]},
    "qwenimage": {"text": [(1, 64)], "joint": [(6, 32)]},
    "pixart": {"text": [(4, 48)]},
    "pixart-sigma": {"text": [(4, 48)]},
    "sana": {"text": [(4, 32)]},
    "wan": {"text": [(4, 32)]},
    "hunyuandit": {"text": [(8, 64)]},
    "luminanext": {"text": [(2, 64), (2, 64)], "pooled": [(1, 64)]},
    "lumina2": {"text": [(1, 64)]},
    "zimage": {"text": [(1, 64)]},
    "cogview4": {"text": [(1, 64)]},
    "prx": {"text": [(1, 64)]},
    "animatediff": {"text": [(8, 32)]},
}
CAUSAL = {"sd1", "sd2", "sdxl", "flux2", "qwenimage", "sana", "luminanext", "lumina2", "zimage", "cogview4"}
CAUSAL |= {"animatediff"}
PROMPT = "a picture of star"
STAR = Concept("star", anchor="circle", preserve=["moon"])
EXACT: dict[str, Any] = {"rows": "all", "preserve_rows": "all", "ridge": 1e-6, "preserve_scale": 1.0, "cache": False}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def pipe(family: str, tmp_path: Path) -> Any:
    return FAMILIES[family].build(tmp_path)


def options(family: str) -> dict[str, Any]:
    return dict(FAMILIES[family].options)


def groups_of(pipe: Any, family: str, *kinds: str) -> list[Group]:
    return port_groups(pipe, [kind for kind in kinds or PORTS[family] if kind in PORTS[family]])


def test_every_family_of_the_table_is_here():
    assert set(PORTS) == set(FAMILIES)
    built = {"pixart": "pixart-sigma", "sd3": "sd35", "sd1": "sd2", "sd2": "sdxl"}
    assert len(TABLE) == len(FAMILIES) - len(built)


def test_ports(family, pipe):
    for kind in ("text", "pooled", "joint"):
        if kind not in PORTS[family]:
            with pytest.raises(ValueError, match=f"got '{kind}'"):
                port_groups(pipe, (kind,))
            continue
        groups = port_groups(pipe, (kind,))
        assert [(len(group.ports), group.ports[0].module.in_features) for group in groups] == PORTS[family][kind]
        assert {group.kind for group in groups} == {kind}
        names = [port.name for group in groups for port in group.ports]
        assert len(set(names)) == len(names)
        for port in (port for group in groups for port in group.ports):
            component, _, path = port.name.partition(".")
            assert getattr(pipe, component).get_submodule(path) is port.module


def test_the_last_token_of_the_subject(family, pipe):
    """Position of the last subject token: it moves with the words before it, and not with those behind."""
    reader = Reader(pipe, "tail", max_length=options(family).get("max_sequence_length"))
    texts = ("{}", "a {}", "a picture of {}", "a picture of {} of moon")
    star, circle = ([fill(text, word) for text in texts] for word in ("star", "circle"))
    encoded = reader.encode([*star, *circle])
    count = len(encoded[star[0]].segments)
    for index in range(count):
        lasts = [encoded[prompt].segments[index].last for prompt in star]
        length = [len(encoded[prompt].segments[index].states) for prompt in star]
        if family == "cogview4" or family == "flux2":  # padded on the left
            assert [size - last for size, last in zip(length, lasts, strict=True)] == [length[0] - lasts[0]] * 3 + [
                length[0] - lasts[0] + 2
            ]
        else:
            assert [last - lasts[0] for last in lasts] == [0, 1, 3, 3]
        for old, new in zip(star, circle, strict=True):
            states, others = (encoded[prompt].segments[index] for prompt in (old, new))
            differs = (states.states - others.states).abs().amax(dim=-1) > 1e-5
            assert differs[states.last]
            if family in CAUSAL:
                assert not differs[: states.last].any()


def test_ports_read_what_the_reader_says(family, pipe):
    """Inputs of the ports during a call: the rows of the prompt, those of the empty prompt, and padding."""
    call = options(family)
    groups = groups_of(pipe, family, "text", "pooled")
    reader = Reader(pipe, "all", any(group.kind == "pooled" for group in groups), call.get("max_sequence_length"))
    encoded = reader.encode([whole(PROMPT), whole(""), whole("moon")])
    seen: dict[str, list[torch.Tensor]] = {group.name: [] for group in groups}
    handles = [
        group.ports[0].module.register_forward_pre_hook(lambda _, given, name=group.name: seen[name].append(given[0]))
        for group in groups
    ]
    draw(pipe, PROMPT, call)
    for handle in handles:
        handle.remove()
    for group in groups:
        inputs = torch.cat([part.detach().flatten(0, -2) for part in seen[group.name]])
        for text, present in ((PROMPT, True), ("moon", False)):
            rows = group.read(states_for(group, encoded[whole(text)], "all"))
            distance = torch.cdist(rows, inputs[:, : rows.shape[1]]).amin(dim=1) / rows.norm(dim=1).clamp(min=1e-3)
            assert (distance.max() < 1e-3) == present, group.name
        if group.padding is not None:
            distance = torch.cdist(group.padding, inputs).amin(dim=1)
            assert distance.median() < 1e-3


def test_an_edit_of_all_ports_moves_the_prompt_to_its_anchor(family, pipe):
    """Through the port table: the erased prompt becomes the anchor, a preserved one stays."""
    if family == "hunyuandit":
        pipe.transformer.time_extra_emb.pooler.c_proj.weight.data.zero_()  # a way in that no port covers
    patch = eraser_for(family).fit(pipe, STAR)
    star, circle, moon = (draw(pipe, text, options(family)) for text in ("star", "circle", "moon"))
    before = weights(pipe)
    with patch.applied(pipe):
        new_star, new_moon = (draw(pipe, text, options(family)) for text in ("star", "moon"))
    assert same(before, weights(pipe))
    assert relative(star, circle) > 1e-2
    assert relative(new_star, circle) < 1e-3
    assert relative(new_moon, moon) < 1e-3


def test_a_way_in_that_no_port_covers_is_told(tmp_path):
    pipe = FAMILIES["hunyuandit"].build(tmp_path)
    with pytest.warns(UserWarning, match=r"time_extra_emb\.pooler"):
        patch = get_eraser("uce", **EXACT).fit(pipe, STAR)
    star, circle = (draw(pipe, text, options("hunyuandit")) for text in ("star", "circle"))
    with patch.applied(pipe):
        assert relative(draw(pipe, "star", options("hunyuandit")), circle) > 0.1 * relative(star, circle)


def test_both_denoisers_of_wan_are_edited(tmp_path):
    pipe = FAMILIES["wan"].build(tmp_path)
    second = copy.deepcopy(pipe.transformer)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1.1)
    pipe.register_modules(transformer_2=second)
    patch = eraser_for("wan").fit(pipe, STAR)
    assert set(patch.meta["groups"]) == {"text", "text-transformer_2"}
    before, length = weights(pipe), options("wan")["max_sequence_length"]
    encoded = Reader(pipe, "all", max_length=length).encode([whole("star"), whole("circle")])
    groups = groups_of(pipe, "wan")
    wanted = [group.ports[0].module(group.read(encoded[whole("circle")].rows("all"))) for group in groups]
    with patch.applied(pipe):
        erased = [group.ports[0].module(group.read(encoded[whole("star")].rows("all"))) for group in groups]
    for new, old in zip(erased, wanted, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-3, atol=1e-3)
    assert same(before, weights(pipe))


def test_stable_diffusion_3_without_t5(tmp_path):
    pipe = FAMILIES["sd3"].build(tmp_path)
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    patch = eraser_for("sd3").fit(pipe, STAR)
    star, circle = (draw(pipe, text, options("sd3")) for text in ("star", "circle"))
    assert relative(star, circle) > 1e-2
    with patch.applied(pipe):
        assert relative(draw(pipe, "star", options("sd3")), circle) < 1e-3
    pipe.register_modules(text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None)
    with pytest.raises(ValueError, match="with a text encoder, got None"):
        eraser_for("sd3").fit(pipe, STAR)


def eraser_for(family: str, **more: Any) -> Any:
    """UCE that maps all rows of all exact ports, with next to no ridge."""
    kinds = tuple(kind for kind in ("text", "pooled") if kind in PORTS[family])
    length = options(family).get("max_sequence_length")
    return get_eraser("uce", **{**EXACT, "ports": kinds, "max_sequence_length": length, **more})


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


def test_find_family_names_the_denoisers(family, pipe):
    known, denoisers = find_family(pipe)
    assert known.denoiser in {type(module).__name__ for _, module in denoisers}
