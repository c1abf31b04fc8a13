"""What every eraser must keep to: one table, every row through every check."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.adapters import fitting, tiny_adapter
from support.selection import cases, diagonal
from support.tiny import FAMILIES, draw, make_pipe, same, weights
from support.trained import NOW, killed_after

from erasers import Concept, Patch, PatchError, UnsupportedPipeline, get_eraser, list_erasers
from erasers.diffusion.counting import Counter
from erasers.eraser import eraser_class

pytestmark = pytest.mark.filterwarnings("ignore:the values of .* are turned:UserWarning")
"""What `oce` says of its scales; its own tests ask for it."""

# Every registered method must have a row: options that make it quick, and its variants.
# Few dimensions have no room for many rows.
NEAR = {"rows": "last", "templates": ("{}",), "mined": 2, "beyond": 4}
TURN = {"aliases": False, "caption_scale": 3000.0, "stay_scale": 1.0}
CLOSED: dict[str, list[dict[str, Any]]] = {
    "uce": [{}, {"rows": "tail", "templates": "auto"}, {"solver": "oblique", "rank": 2, "ridge": 0.01}],
    "rece": [{}, {"rows": "tail", "anchor_policy": "current"}],
    "realera": [NEAR, NEAR | {"mined": 0, "beyond": 0}],
    "dp": [{}, {"target": "projection", "joint": False}],
    "leace": [{"templates": ("{}",), "aliases": False}],
    "speed": [
        {"retain_scale": 0.05, "aliases": False},
        {"filtered": False, "augmented": 0, "layers": "kv", "retain_scale": 0.05},
    ],
    "oce": [TURN, TURN | {"upstream_compat": True, "error": 1e-6}],
}
PER_LAYER = {"oce", "speed"}
"""Closed forms that are not one map of the text for all layers."""
BRIEF = {"iterations": 4, "lr": 1e-2}
FEW = BRIEF | {"steps": 2}
POOL = {"pictures": 2, "kept": 2, "noises": 2, "bank": 3, "tokens": (1, 2), "restart": 2}
DOMAINS = {"pictures": 2, "warm_up": 1, "batch": 2, "width": 8}
ADVERSARY = {"pictures": 2, "kept": 4, "attack_steps": 2, "warm_up": 1}
PICTURED = {"adapter": tiny_adapter(), "images": 2, "pictures": 2, "refresh": 2}
SEARCHES = {"pictures": 2, "rounds": 1, "search_iterations": 1, "attack_steps": 1}
WAYS = {"steps": 4, "batch": 2, "random_steps": 1, "last_steps": 1}
TRAINED: dict[str, list[dict[str, Any]]] = {
    "esd": [FEW | {"pictures": 2, "refresh": 2}, FEW | {"pictures": 2, "rank": 2, "train_method": "x"}],
    "ablation": [
        FEW | {"pictures": 2, "kept": 2, "batch": 2},
        FEW | {"pictures": 2, "kept": 2, "rank": 2, "form": "noise", "prior": "frozen", "train_method": "all"},
    ],
    "hirm": [
        BRIEF | {"kept": 4, "kept_batch": 2},
        BRIEF | {"toward": "anchor", "rank": 2, "keep": 0.0, "templates": "auto"},
    ],
    "stereo": [FEW | SEARCHES, FEW | SEARCHES | {"rank": 2, "train_method": "x", "drawn_by": "student", "refresh": 2}],
    "eraseflow": [
        FEW | WAYS,
        FEW | WAYS | {"constant": 2.6953, "rank": 0, "templates": "auto"},
    ],
    "mace": [
        FEW | {"pictures": 2, "templates": ("{}", "a {} here")},
        FEW | {"pictures": 2, "hold": "original", "times": "uniform", "batch": 2},
    ],
    "salun": [
        FEW | {"pictures": 2, "kept": 2, "batch": 2, "train_method": "x"},
        FEW | {"pictures": 2, "kept": 2, "train_method": "all", "share": 0.2, "prior": "frozen"},
    ],
    "safe": [FEW | {"pictures": 2, "refresh": 2}, FEW | {"rank": 2, "train_method": "x", "drawn_by": "frozen"}],
    "co_erasing": [FEW | PICTURED, FEW | PICTURED | {"rank": 2, "drawn_by": "frozen", "refine": False}],
    "concept_slider": [FEW | {"rank": 2, "refresh": 2}, FEW | {"layers": "cross", "both_signs": False, "batch": 2}],
    "few_shot": [
        FEW | {"pictures": 2, "kept": 4, "max_drift": 1e3},
        FEW | {"pictures": 2, "max_drift": None, "rank": 2},
    ],
    "geom_erasing": [
        FEW | {"pictures": 8, "batch": 2, "grid": 2},
        FEW | {"pictures": 8, "grid": 2, "rank": 2, "train_method": "x", "alpha": 10.0},
    ],
    "adv_unlearn": [FEW | ADVERSARY, FEW | ADVERSARY | {"fast": True, "attack_init": "latest"}],
    "doco": [
        FEW | {"pictures": 2, "warm_up": 1, "batch": 2, "width": 8, "kept": 2},
        FEW
        | {"pictures": 2, "warm_up": 1, "batch": 2, "width": 8, "rank": 2, "prior": "frozen", "upstream_compat": True},
    ],
    "robust_ablation": [
        FEW | POOL,
        FEW | POOL | {"rank": 0, "train": "cross", "attack_scale": 0.0, "relearn_scale": 0.0},
    ],
}
TABLE = CLOSED | TRAINED
STABLE = {"geom_erasing"}
"""Methods for Stable Diffusion 1 and 2 alone."""
APART = {
    *("semantic_surgery", "adavd", "casteer", "safree", "sld", "negative_prompt", "itd", "eim", "concept_lancet"),
    *("receler", "spm"),
}
"""Their patches have hooks and no weights, and eim is for one family: their own tests have the same checks."""


def rows_of(table: dict[str, list[dict[str, Any]]]) -> dict[str, tuple[str, dict[str, Any]]]:
    return {
        "-".join([name, *(str(number) for number in [index] if index)]): (name, options)
        for name, rows in table.items()
        for index, options in enumerate(rows)
    }


ROWS = rows_of(TABLE)
KEPT = ["moon", "blue", "a red moon", "a picture of a blue ring", "a moon of blue and red", "red", "a blue moon"]
STAR = Concept("star", aliases=["pentagram"], anchor="circle", preserve=KEPT, neighbours=["ring"])


def test_table_covers_every_registered_method():
    assert sorted({*TABLE, *APART}) == list_erasers()
    for name in APART:
        assert list((Path(__file__).parent / "methods").rglob(f"test_{name}.py"))


@pytest.mark.parametrize("name", list_erasers())
def test_every_registered_method_says_what_it_is(name):
    said = vars(eraser_class(name))
    for field in ("paper", "family", "strengths", "limits"):
        assert said.get(field, "").strip(), f"{name} says nothing of its {field}"
    assert "|" not in "".join(said[field] for field in ("paper", "family", "strengths", "limits"))


@pytest.mark.parametrize("name", sorted(APART))
def test_methods_that_stand_apart_say_that_they_have_hooks(name):
    assert eraser_class(name).hooks, f"expected hooks = True of {name}"


def made(row: str) -> Any:
    name, options = ROWS[row]
    return get_eraser(name, **options)


@pytest.fixture(params=ROWS)
def eraser(request: pytest.FixtureRequest) -> Any:
    return made(request.param)


@pytest.fixture(params=rows_of(CLOSED))
def closed(request: pytest.FixtureRequest) -> Any:
    return made(request.param)


@pytest.fixture(params=rows_of(TRAINED))
def trained(request: pytest.FixtureRequest) -> Any:
    return made(request.param)


@pytest.fixture(scope="module")
def fitted(pipes) -> Iterator[Callable[[Any], Patch]]:
    """The patch of an eraser for a pipeline like `pipe`, fitted once; tests leave it as it is."""
    patches: dict[Any, tuple[Patch, str]] = {}

    def fit(eraser: Any) -> Patch:
        if eraser not in patches:
            patch = eraser.fit(pipes("sd1"), STAR, progress=False)
            patches[eraser] = patch, patch.digest
        return patches[eraser][0]

    yield fit
    for patch, digest in patches.values():
        assert Patch(patch.tensors, patch.meta).digest == digest


def first(row: str) -> bool:
    """Whether it is the first of its method."""
    return row in TABLE


@pytest.mark.parametrize(
    ("eraser", "family"),
    cases(
        ROWS,
        FAMILIES,
        default=lambda row, family: (
            (family != "sd2" and first(row))
            or (family == "sd1" and row in ("uce-1", "uce-2", "esd-1"))
            or (family == "sd2" and row in ("uce", "esd"))
        ),
    ),
    indirect=["eraser"],
)
def test_fit_apply_remove(pipes, family, eraser):
    pipe = pipes(family)
    if family == "sdxl" and eraser.name in STABLE:
        with pytest.raises(UnsupportedPipeline, match="expected a pipeline of Stable Diffusion 1 or 2"):
            eraser.fit(pipe, STAR)
        return
    before, picture = weights(pipe), draw(pipe)
    patch = fitting(eraser, family).fit(pipe, STAR)
    assert same(before, weights(pipe))
    patch.apply(pipe)
    after = weights(pipe)
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(patch.parameters)
    assert all(after[name].dtype == before[name].dtype for name in before)
    assert not torch.equal(picture, draw(pipe))
    patch.remove(pipe)
    assert same(before, weights(pipe))
    assert torch.equal(picture, draw(pipe))


def test_restored_after_an_exception(pipe, eraser, fitted):
    before, patch = weights(pipe), fitted(eraser)
    with pytest.raises(RuntimeError, match="inside"), patch.applied(pipe):
        raise RuntimeError("inside")
    assert same(before, weights(pipe))


def test_strength_zero_is_the_identity(pipe, eraser, fitted):
    before, patch = weights(pipe), fitted(eraser)
    with patch.applied(pipe, strength=0):
        assert same(before, weights(pipe))
    assert same(before, weights(pipe))


@pytest.mark.parametrize(("closed", "family"), diagonal(rows_of(CLOSED), FAMILIES), indirect=["closed"])
def test_concept_weaker_and_preserved_moves_less(pipes, family, closed):
    pipe = pipes(family)
    patch = closed.fit(pipe, STAR)
    star, circle, moon = (embeddings(pipe, text)[1] for text in ("star", "circle", "moon"))
    layer = pipe.unet.get_submodule(patch.parameters[0].removeprefix("unet.").removesuffix(".weight"))
    old = [layer(row) for row in (star, circle, moon)]
    with patch.applied(pipe):
        new = [layer(row) for row in (star, circle, moon)]
    moved = (new[0] - old[0]).norm()
    assert (old[0] - old[1]).norm() > 0.05
    assert moved > 0.3 * (old[0] - old[1]).norm()
    assert (new[2] - old[2]).norm() < moved


@pytest.mark.parametrize("eraser", cases(ROWS, default=first), indirect=True)
def test_same_seed_same_patch(pipe, eraser, fitted):
    patch = eraser.fit(pipe, STAR, generator=torch.Generator().manual_seed(0), progress=False)
    assert patch.digest == fitted(eraser).digest


@pytest.mark.parametrize(
    ("eraser", "dtype"),
    cases(
        ROWS,
        [torch.float16, torch.bfloat16, torch.float64],
        default=lambda row, dtype: (
            row in ("uce", "esd") or (first(row) and row != "robust_ablation" and dtype == torch.bfloat16)
        ),
    ),
    indirect=["eraser"],
)
def test_dtype_is_kept(pipe, eraser, dtype):
    pipe.unet.to(dtype)
    if dtype == torch.float16 and eraser.trains:
        # The first steps overflow while the scale of the loss finds its size.
        eraser = replace(eraser, iterations=16)
    before, patch = weights(pipe), eraser.fit(pipe, STAR)
    with patch.applied(pipe):
        assert all(value.dtype == before[name].dtype for name, value in weights(pipe).items())
        assert not same(before, weights(pipe))
    assert same(before, weights(pipe))


def test_config_is_json(eraser, fitted):
    patch = fitted(eraser)
    assert json.loads(json.dumps(dict(patch.meta)))["method"] == eraser.name
    assert set(patch.meta["config"]) == set(eraser.config())
    assert patch.meta["concepts"][0]["name"] == "star"
    assert patch.has_hooks == eraser.hooks


@pytest.mark.parametrize(
    "closed", rows_of({name: rows for name, rows in CLOSED.items() if name not in PER_LAYER}), indirect=True
)
def test_unedited_model_with_edited_prompt_gives_the_same_picture(pipe, closed, fitted):
    """Feeding T x to the unedited denoiser equals editing every port: a check that shares no code with apply."""
    patch = fitted(closed)
    parts = {name.rpartition("/")[2]: value for name, value in patch.tensors.items()}
    transform = parts["T"] if "T" in parts else torch.eye(parts["A"].shape[1]) + parts["B"] @ parts["A"]
    prompt, empty = (embeddings(pipe, text)[None] for text in ("a picture of star", ""))
    with patch.applied(pipe):
        edited = draw(pipe, None, prompt_embeds=prompt, negative_prompt_embeds=empty)
    rotated = draw(pipe, None, prompt_embeds=prompt @ transform.T, negative_prompt_embeds=empty @ transform.T)
    torch.testing.assert_close(edited, rotated, rtol=0, atol=2e-5)
    assert (edited - draw(pipe, None, prompt_embeds=prompt, negative_prompt_embeds=empty)).abs().max() > 1e-3


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "none": ([], ValueError, "got none"),
    "empty": ("", ValueError, "''"),
    "twice": (["star", "star"], ValueError, "star"),
    "number": (3, TypeError, "3"),
    "numbers": ([3], TypeError, "3"),
    "its own anchor": (Concept("star", anchor="star"), ValueError, "differ"),
    "preserved": (Concept("star", preserve=["Star"]), ValueError, "Star"),
}


@pytest.mark.parametrize(("eraser", "bad"), cases(ROWS, BAD, default=lambda row, bad: first(row)), indirect=["eraser"])
def test_bad_concepts_raise(pipe, eraser, bad):
    concepts, error, got = BAD[bad]
    with pytest.raises(error, match=got):
        eraser.fit(pipe, concepts)


def test_unsupported_pipeline_lists_the_supported_ones(eraser):
    with pytest.raises(TypeError, match=r"UNet2DConditionModel.*got object"):
        eraser.fit(object(), STAR)


def test_erasing_many_with_few_preserved_warns(pipe, closed):
    names = [f"star {letter}" for letter in "abcdefghijk"]
    with pytest.warns(UserWarning, match="erasing 11 concepts while preserving"):
        closed.fit(pipe, names)


@pytest.mark.parametrize("trained", cases(rows_of(TRAINED), default=first), indirect=True)
def test_cost_is_what_training_spends(pipe, trained):
    with Counter(pipe) as counter:
        trained.fit(pipe, [STAR, Concept("art")], progress=False)
    assert counter.calls.gradients > 0 or trained.name == "hirm"
    assert counter.calls.texts > 0
    assert trained.cost(pipe, [STAR, Concept("art")]) == counter.calls


@pytest.mark.parametrize(
    ("trained", "after"),
    cases(
        rows_of(TRAINED), [1, 3], default=lambda row, after: row in ("esd", "few_shot", "adv_unlearn") and after == 1
    ),
    indirect=["trained"],
)
def test_a_killed_training_goes_on_to_the_same_patch(pipe, trained, after, fitted, tmp_path):
    path, before = tmp_path / "checkpoint", weights(pipe)
    with killed_after(after):
        trained.fit(pipe, STAR, checkpoint=path, **NOW)
    assert same(before, weights(pipe))
    resumed = trained.fit(pipe, STAR, progress=False, checkpoint=path)
    assert resumed.digest == fitted(trained).digest
    with pytest.raises(ValueError, match="another model, concept, method, option or seed"):
        trained.fit(pipe, Concept("art"), progress=False, checkpoint=path)


_SECOND = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.selection import cases, diagonal
from support.tiny import make_pipe, draw
torch.set_num_threads(1)
from erasers import Patch
folder = Path(sys.argv[2])
pipe = make_pipe("sd1", folder)
patches = sorted(folder.glob("*.safetensors"))
pictures = {}
for path in patches:
    with Patch.load(path).applied(pipe):
        pictures[path.name] = draw(pipe)
assert not any(name.startswith("erasers.methods") for name in sys.modules)
torch.save(pictures, folder / "pictures.pt")
"""


def test_round_trip_in_a_second_process(fitted, tmp_path):
    pipe, expected = make_pipe("sd1", tmp_path), {}
    for label in ROWS:
        patch = fitted(made(label))
        patch.save(tmp_path / f"{label}.safetensors")
        assert Patch.load(tmp_path / f"{label}.safetensors").digest == patch.digest
        with patch.applied(pipe):
            expected[f"{label}.safetensors"] = draw(pipe)
    here = str(__file__).rpartition("/")[0]
    subprocess.run([sys.executable, "-W", "ignore", "-c", _SECOND, here, str(tmp_path)], check=True, timeout=300)
    pictures = torch.load(tmp_path / "pictures.pt", weights_only=True)
    assert pictures.keys() == expected.keys()
    assert all(torch.equal(pictures[name], expected[name]) for name in expected)


def test_patch_of_another_base_is_refused(pipes, eraser, fitted):
    other, patch = pipes("sd1"), fitted(eraser)
    with torch.no_grad():
        part = patch.parameters[0].partition(".")[0]
        for parameter in getattr(other, part).parameters():
            parameter.mul_(1.01)
    before = weights(other)
    with pytest.raises(PatchError, match=f"other weights: {part}"):
        patch.apply(other)
    assert same(before, weights(other))
    patch.apply(other, force=True)


def embeddings(pipe: Any, text: str) -> torch.Tensor:
    """States `[tokens, d]` as the pipeline itself makes them."""
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    with torch.no_grad():
        return pipe.encode_prompt(text, **options)[0][0]
