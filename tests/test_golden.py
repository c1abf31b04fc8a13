"""Agreement with what the official UCE and RECE code computed (tests/data/golden.safetensors)."""

from __future__ import annotations

import pytest
import torch
from support.tiny import golden_pipe

from erasers import Concept, get_eraser
from erasers.closed_form.algebra import adversarial_rows, ridge_edit, transform_of
from erasers.closed_form.ports import sum_of_grams
from erasers.methods.rece import RECE
from erasers.models.ports import port_groups

V1, V2 = 1e-10, 1e-4  # the official v2 inverts in float32 even in float64


def relative(reference: torch.Tensor, value: torch.Tensor) -> float:
    return float((reference - value).norm() / reference.norm())


def worst(golden: dict[str, torch.Tensor], case: str, weight_of) -> float:
    names = [key for key in golden if key.startswith(f"{case}/")]
    assert len(names) == 6
    return max(relative(golden[name], weight_of(name.removeprefix(f"{case}/"))) for name in names)


def tail_pair(golden, old: str, new: str) -> tuple[torch.Tensor, torch.Tensor]:
    i, j = (int(golden[f"attn/{name}"].sum()) - 2 for name in (old, new))
    f = max(i, j)
    return golden[f"emb/{old}"][i : 77 - (f - i)], golden[f"emb/{new}"][j : 77 - (f - j)]


def test_uce_v1_pure():
    _, golden = golden_pipe()
    erase, anchor = tail_pair(golden, "nudity", "<empty>")
    a, b = ridge_edit(erase, anchor, golden["emb/<empty>"], ridge=0.5)
    assert worst(golden, "uce_v1/W_new", lambda name: golden[f"W_old/{name}"] @ transform_of(a, b)) <= V1


def test_rece_pure():
    _, golden = golden_pipe()
    erase, anchor = tail_pair(golden, "nudity", "<empty>")
    empty, concept = golden["emb/<empty>"], golden["emb/nudity"]
    gram = sum_of_grams([value for key, value in golden.items() if key.startswith("W_old/")])
    transform = transform_of(*ridge_edit(erase, anchor, empty, ridge=0.5))
    for k in range(3):
        derived = adversarial_rows(gram, transform, concept, reg=0.1)
        assert relative(golden[f"rece/adv/ep{k}/nudity"], derived) <= V1
        transform = transform @ transform_of(*ridge_edit(derived, empty, empty, ridge=0.1, preserve_scale=0.1))
    assert worst(golden, "rece/W_new/ep2", lambda name: golden[f"W_old/{name}"] @ transform) <= V1


@pytest.mark.parametrize(
    ("case", "preset", "concepts", "bound"),
    [
        ("uce_v1/W_new", "uce-v1", ["nudity"], V1),
        ("uce_v2_empty/W_new", "uce-v2", [Concept("van gogh", anchor="")], V2),
        (
            "uce_v2_art/W_new",
            "uce-v2",
            [
                Concept("van gogh", anchor="art", preserve=["monet", "rembrandt"]),
                Concept("kilian eng", anchor="art", preserve=["andy warhol"]),
            ],
            V2,
        ),
        ("rece/W_new/ep2", "rece-official", ["nudity"], V1),
    ],
)
def test_presets_end_to_end(case, preset, concepts, bound):
    pipe, golden = golden_pipe()
    patch = get_eraser(preset).fit(pipe, concepts)
    with patch.applied(pipe):
        assert worst(golden, case, lambda name: pipe.unet.get_submodule(name).weight.data) <= bound
    assert worst(golden, "W_old", lambda name: pipe.unet.get_submodule(name).weight.data) == 0


def test_rece_derived_rows_end_to_end():
    pipe, golden = golden_pipe()
    concepts = [Concept.preset("nudity")]
    eraser = get_eraser("rece-official").resolved(concepts)
    assert isinstance(eraser, RECE)
    assert (eraser.rounds, eraser.reg) == (3, 0.1)
    (group,) = port_groups(pipe)
    (task,) = eraser.gather(pipe, concepts, [group])
    gram = sum_of_grams([port.module.weight for port in group.ports])
    start = eraser.solve(task.erase, task.anchor, task.preserve)
    for k, found in enumerate(eraser.iterate(task, start, gram)):
        assert relative(golden[f"rece/adv/ep{k}/nudity"], found.derived) <= V1


@pytest.mark.parametrize("change", [{"rows": "last"}, {"preserve_empty": False}, {"ridge": 0.1}, {"rows": "all"}])
def test_a_plausible_mistake_is_seen(change):
    pipe, golden = golden_pipe()
    with get_eraser("uce-v1", **change).fit(pipe, "nudity").applied(pipe):
        assert worst(golden, "uce_v1/W_new", lambda name: pipe.unet.get_submodule(name).weight.data) > 1e-2
