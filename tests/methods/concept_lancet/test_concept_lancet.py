"""Concept Lancet: its dictionary, its gate, what leaves on every family, and what it shows of a prompt."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from support.families.all import FAMILIES
from support.families.base import draw as draw_family
from support.selection import only
from support.tiny import draw, same, weights

from erasers import Concept, ErasedPipeline, Patch, load_pipeline
from erasers.cli import app as cli
from erasers.methods.concept_lancet.dictionary import atoms_of, read_dictionary
from erasers.methods.concept_lancet.eraser import ConceptLancet, thresholds
from erasers.methods.concept_lancet.explaining import decompositions
from erasers.worlds.shapes.prompts import concept_for

KEPT = (
    "moon",
    "a red moon",
    "a picture of a blue ring",
    "a moon of blue and red",
    "red",
    "a blue moon",
    "van gogh art",
)
STAR = Concept("star", aliases=["pentagram"], anchor="circle", preserve=KEPT, neighbours=["ring"])
QUICK = {"everyday": False, "templates": ("{}", "a {}", "a picture of {}")}
UNGUIDED = {"num_inference_steps": 2, "guidance_scale": 1.0}


def lancet(**options: Any) -> ConceptLancet:
    return ConceptLancet(**{**QUICK, **options})


def caught(pipe: Any, eraser: ConceptLancet, concept: Concept = STAR) -> str:
    """The prompt that shows a concept most: encoders of random weights put some kept ones above others with it."""
    concepts = eraser.prepared(pipe, [concept])
    prompts = eraser.asked(concepts)[0]
    return prompts[int(eraser.coefficients(pipe, eraser.fitted(pipe, concepts)[:1], prompts)[0][:, 0].argmax())]


def test_the_dictionary_begins_with_the_concepts_and_has_them_nowhere_else(tmp_path):
    file = tmp_path / "lists.yaml"
    file.write_text("ring: [a ring]\nsky: [blue sky, a star in the sky]\nstars: [a star]\n")
    atoms = atoms_of([STAR], ("{}", "a {}"), 3, str(file), aliases=True)
    assert [atom.name for atom in atoms] == ["star", "circle", "ring", "sky", *KEPT[:3]]
    texts = {atom.name: [prompt.text for prompt in atom.prompts] for atom in atoms}
    assert texts["star"] == ["star", "a star", "pentagram", "a pentagram"]
    assert (texts["ring"], texts["sky"]) == (["a ring"], ["blue sky"])
    assert [atom.name for atom in atoms_of([STAR], ("{}",), 0, None, aliases=False)] == ["star", "circle", "ring"]
    with pytest.raises(FileNotFoundError, match="no file"):
        read_dictionary(str(tmp_path / "none.yaml"))
    for text in ("[a]", "a: b", "a: []", "a: [1]", "a: ['']", "{}"):
        file.write_text(text)
        with pytest.raises(ValueError, match="lists.yaml"):
            read_dictionary(str(file))


def test_no_kept_prompt_passes_and_the_gate_lies_before_the_weakest_prompt_with_the_concept():
    asked, kept = torch.tensor([0.5, 0.9]).double(), torch.tensor([0.1, -0.2]).double()
    for margin in (0.0, 0.5, 1.0):
        floor, gate = thresholds(asked, kept, margin)
        assert kept.max() < floor <= gate < asked.min()
    floor, gate = thresholds(asked, torch.tensor([0.7]).double(), 0.5)
    assert floor == gate > 0.7
    assert thresholds(asked, torch.tensor([-1.0]).double(), 0.0)[0] > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", only(list(FAMILIES), "sd1", "sdxl", "sd3", "flux", "pixart", "zimage"))
def test_every_family(tmp_path, name):
    pipe = FAMILIES[name].build(tmp_path)
    # What T5 says depends on how many tokens it reads; with more captions the encoder of FLUX.2, whose weights are
    # random, says of kept prompts what it says of the concept's.
    read: dict[str, Any] = {"max_sequence_length": FAMILIES[name].options.get("max_sequence_length")}
    eraser, before = lancet(**read, **({"captions": 5} if name == "flux2" else {})), weights(pipe)
    picture = partial(draw_family, pipe, caught(pipe, eraser), FAMILIES[name].options)
    plain = picture()
    patch = eraser.fit(pipe, STAR)
    assert same(before, weights(pipe))
    patch.save(tmp_path / "x.safetensors")
    patch = Patch.load(tmp_path / "x.safetensors")
    with patch.applied(pipe):
        assert not torch.equal(picture(), plain)
        kept = draw_family(pipe, KEPT[1], FAMILIES[name].options)
    assert torch.equal(picture(), plain)
    assert torch.equal(draw_family(pipe, KEPT[1], FAMILIES[name].options), kept)


@pytest.mark.parametrize("options", [{}, {"vectors": "prompt"}, {"replace": True}], ids=str)
def test_kept_prompts_stay_bit_for_bit_in_any_company(pipe, options):
    patch, prompt = lancet(**options).fit(pipe, STAR), caught(pipe, lancet(**options))
    plain, star = draw(pipe, list(KEPT[:3]), **UNGUIDED), draw(pipe, [prompt], **UNGUIDED)
    with patch.applied(pipe):
        assert torch.equal(draw(pipe, list(KEPT[:3]), **UNGUIDED), plain)
        erased = draw(pipe, [prompt], **UNGUIDED)
        assert (erased - star).abs().max() > 1e-3
        mixed = draw(pipe, ["moon", prompt], **UNGUIDED)
    both = draw(pipe, ["moon", prompt], **UNGUIDED)
    assert torch.equal(mixed[0], both[0])
    assert not torch.equal(mixed[1], both[1])


def test_a_saved_folder_offloading_and_compiled_code(pipe, tmp_path):
    patch, prompt = lancet().fit(pipe, STAR), [caught(pipe, lancet())]
    plain = draw(pipe, prompt)
    patch.apply(pipe)
    erased = draw(pipe, prompt)
    assert not torch.equal(erased, plain)
    ErasedPipeline.save_pretrained(pipe, tmp_path / "folder", [patch])
    torch.testing.assert_close(draw(load_pipeline(tmp_path / "folder"), prompt), erased)
    pipe.unet.compile(backend="eager")
    torch.testing.assert_close(draw(pipe, prompt), erased)
    pipe.unet._compiled_call_impl = None
    pipe.enable_model_cpu_offload(device="cpu")
    torch.testing.assert_close(draw(pipe, prompt), erased)


def test_the_same_patch_again_and_what_it_says(pipe):
    patches = [lancet().fit(pipe, STAR) for _ in range(2)]
    assert patches[0].digest == patches[1].digest
    assert [hook.target for hook in patches[0].hooks] == ["unet"]
    assert (patches[0].meta["atoms"][:3], patches[0].meta["method"]) == (["star", "circle", "ring"], "concept_lancet")


def test_two_concepts_have_a_direction_each(pipe):
    kept = tuple(text for text in KEPT if "moon" not in text)
    star, moon = (Concept(name, anchor="circle", preserve=kept) for name in ("star", "moon"))
    patch = lancet().fit(pipe, [star, moon])
    (parts,) = (hook.parts for hook in patch.hooks)
    assert (len(parts["away"]), patch.meta["atoms"][:2]) == (2, ["star", "moon"])
    assert torch.equal(parts["away"], parts["atoms"][:2])


def test_what_is_refused(pipe):
    for options in ({"tau": 1.0}, {"alpha": 0.0}, {"margin": 2.0}, {"captions": -1}, {"vectors": "word"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            lancet(**options)
    with pytest.raises(ValueError, match="a direction of 'star'"):
        # The encoder reads no further than the sixteenth token.
        lancet(templates=("moon " * 20 + "{}",)).fit(pipe, Concept("star", anchor="circle", preserve=KEPT))


def test_what_prompts_consist_of_is_shown(pipe, tmp_path, capsys):
    shown = decompositions(pipe, STAR, lancet())
    assert [row.prompt for row in shown][:2] == ["star", "a star"]
    assert shown[-1].prompt == ""
    assert any(row.own > row.gate for row in shown)
    assert not any(row.own > row.gate for row in shown if "star" not in row.prompt and "pentagram" not in row.prompt)
    names = [atom.name for atom in lancet().atoms([STAR])]
    for row in shown:
        assert {name for name, _ in row.others} <= set(names[1:])
        sizes = [abs(value) for _, value in row.others]
        assert sizes == sorted(sizes, reverse=True)
        assert 0 not in sizes
    pipe.save_pretrained(tmp_path / "model")
    command = ["explain", "--concept", "star", "--model", str(tmp_path / "model"), "--method", "concept_lancet"]
    assert cli.run([*command, "--set", "everyday=false"]) == 0
    assert "strongest other" in capsys.readouterr().out
    for wrong, message in (
        ([*command, "--sae", "x"], "--sae and --out are for itd"),
        ([*command[:-1], "uce"], "itd or concept_lancet"),
    ):
        assert cli.run(wrong) == 2
        assert message in capsys.readouterr().err


def test_on_the_embedded_model_a_code_tells_its_prompts_from_kept_ones():
    pipe, eraser = load_pipeline("shapes"), ConceptLancet(captions=20, everyday=False)
    star = concept_for("star")
    star = Concept(star.name, anchor=star.anchor, neighbours=star.neighbours, preserve=star.preserve[:30])
    ((text, parts),) = eraser.fitted(pipe, [star])
    held_out = [
        "a red star on a black background",
        "a pentagram",
        "a red hexagon",
        "a large ring in the style of krostic",
    ]
    own = eraser.coefficients(pipe, [(text, parts)], held_out)[0][:, 0]
    assert (own > parts["gate"]).tolist() == [True, True, False, False]
