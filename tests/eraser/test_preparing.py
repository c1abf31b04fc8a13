"""What stands before every method: contradictions, what the pipeline reads, and what is kept when nobody says."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families.all import FAMILIES
from support.families.base import draw as draw_family
from support.saes import OPTIONS, save_saes
from support.selection import only
from support.tiny import draw, make_text_encoder
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from erasers import Concept, Patch, get_eraser, list_erasers, load_pipeline
from erasers.concept import as_concepts
from erasers.concept.captions import ENOUGH, NAME, captions_without, everyday
from erasers.concept.words import mentions
from erasers.diffusion.tokens import tokenise
from erasers.eraser import eraser_class
from erasers.eraser.preparing import spellings
from erasers.sae.text_blocks import find_blocks
from erasers.worlds.shapes.prompts import concept_for
from erasers.worlds.shapes.vocabulary import KINDS

pytestmark = [
    pytest.mark.filterwarnings("ignore:the values of .* are turned:UserWarning"),
    pytest.mark.filterwarnings("ignore:preserved states have:UserWarning"),
]
"""What `oce` says of its scales and `dp` of its bound; their own tests ask for it."""
STAR = Concept("star", anchor="circle")
ANY_FAMILY = [name for name in list_erasers() if eraser_class(name).everywhere]
QUICK: dict[str, dict[str, Any]] = {
    "esd": {"iterations": 2, "steps": 2, "batch": 1},
    "ablation": {"iterations": 2, "steps": 2, "pictures": 1, "kept": 12, "batch": 1},
    "hirm": {"iterations": 2, "kept": 12, "kept_batch": 12},
    "stereo": {"iterations": 2, "steps": 2, "rounds": 0, "pictures": 1},
    "salun": {"iterations": 2, "steps": 2, "pictures": 1, "kept": 12, "batch": 1},
    "safe": {"iterations": 2, "steps": 2, "batch": 1},
    "concept_slider": {"iterations": 2, "steps": 2, "batch": 1},
    "adv_unlearn": {"iterations": 2, "steps": 2, "pictures": 1, "kept": 12, "warm_up": 1, "attack_steps": 1},
    "robust_ablation": {"iterations": 2, "steps": 2, "pictures": 2, "kept": 12, "noises": 1, "bank": 2, "lr": 1e-4},
    "few_shot": {"iterations": 1, "steps": 2, "kept": 12, "max_drift": 99.0},
    "doco": {"iterations": 2, "warm_up": 1, "steps": 2, "pictures": 2, "kept": 12, "batch": 1, "width": 8},
    "realera": {"beyond": 0, "mined": 0},
    # Else prompts are encoded no further than their last word.
    "dp": {"preserve_rows": "all"},
    "speed": {"preserve_rows": "all"},
}


def reading(pipe: Any) -> Any:
    """The pipeline with a tokenizer of whole words, in lower case, that knows those of the captions."""
    words = sorted({word for text in everyday() for word in pre_tokenizers.Whitespace().pre_tokenize_str(text.lower())})
    names = ["star", "stars", "pentagram", "circle", "ring", "moon", "art", "something", "creature", "close", "of"]
    known = dict.fromkeys(["<s>", "</s>", "<unk>", *(word for word, _ in words), *names, "image", "bright"])
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token="<unk>"))
    core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    pipe.tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=77, **special)
    pipe.text_encoder = make_text_encoder(pipe.tokenizer, 32, positions=77)
    return pipe


# Contradictions


@pytest.mark.parametrize("method", only(ANY_FAMILY, "uce", "esd", "itd"))
@pytest.mark.parametrize(
    "concepts",
    [
        [Concept("star", anchor="star"), Concept("moon", anchor="ring")],
        [Concept("star", anchor="STAR"), Concept("moon", anchor="ring")],
        [Concept("star", anchor="a  Star")],
        [Concept("star", aliases=["moon"], anchor="moon")],
        [Concept("star", anchor="moon"), Concept("moon", anchor="ring")],
        [Concept("star", anchor="ring", preserve=["Star"])],
        [Concept("star", anchor="ring", aliases=["moon"], preserve=["moon"])],
        [Concept("star", anchor="ring", preserve=["moon"]), Concept("moon", anchor="art")],
        [Concept("star", anchor="ring", neighbours=["star"])],
    ],
)
def test_contradictions_are_refused_by_every_method_before_any_work(pipe, method, concepts):
    pipe.text_encoder.register_forward_pre_hook(lambda module, given: pytest.fail("worked"))
    with pytest.raises(ValueError, match=r"expected (anchors that differ|preserved concepts|neighbours)"):
        get_eraser(method).fit(pipe, concepts, progress=False)


def test_presets_whose_neighbours_are_erased_as_well_are_no_contradiction():
    assert len(as_concepts(["monet", "van gogh"])) == 2


def test_an_anchor_that_is_read_as_the_concept_is_refused(pipe):
    with pytest.raises(ValueError, match=r"got 'ïstar' for 'éstar', which are the same tokens"):
        get_eraser("uce").fit(pipe, Concept("éstar", anchor="ïstar"))


@pytest.mark.parametrize("method", ["uce", "rece", "itd", "esd"])
def test_preserved_texts_that_name_the_concept_are_left_out_and_counted(pipe, tmp_path, method):
    concept = Concept("star", anchor="circle", preserve=["a red star", "two Stars", "a moon", "a pentagram"])
    concept = Concept("star", anchor="circle", aliases=["pentagram"], preserve=concept.preserve)
    options = dict(QUICK.get(method, {})) | ({"sae": save_saes(pipe, tmp_path), **OPTIONS} if method == "itd" else {})
    with pytest.warns(UserWarning, match="3 preserved texts name 'star' and are left out"):
        patch = get_eraser(method, **options).fit(pipe, concept, progress=False)
    assert patch.meta["concepts"][0]["preserve"] == ["a moon"]


# What the pipeline reads


@pytest.mark.parametrize("name", ["van gogh, moon", "star; moon", "a,b"])
def test_a_list_that_was_taken_for_one_concept_is_told(pipe, name):
    with pytest.warns(UserWarning, match=r"one concept with a comma in it; for several, repeat --concept"):
        get_eraser("uce").prepared(pipe, Concept(name, anchor="art"))


LONG = "a picture of a red shape " * 5


@pytest.mark.parametrize(
    ("concept", "cut"),
    [
        (Concept(LONG + "star", anchor="circle"), "'of a red shape.* star' at the end"),
        (Concept("star", aliases=[LONG + "moon"], anchor="circle"), "moon' at the end"),
        (Concept("star", anchor=LONG + "ring"), "ring' at the end"),
        (Concept("star", anchor="ring", preserve=[LONG, "a moon"]), "1 preserved texts are longer"),
    ],
)
def test_what_is_cut_off_is_named(pipe, concept, cut):
    with pytest.warns(UserWarning, match=rf"the text_encoder reads 16 tokens: .*{cut}"):
        get_eraser("uce").prepared(pipe, concept)


def test_what_fits_is_not_named(pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_eraser("uce").prepared(pipe, Concept("star " * 14, anchor="circle"))


@pytest.fixture
def toy(pipe: Any) -> Any:
    torch.manual_seed(7)
    # The tokenizer is shared by the pipelines of the tests.
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.load_textual_inversion(torch.randn(4, 32), token="<toy>")
    return pipe


@pytest.mark.parametrize(
    ("concept", "asked", "becomes"),
    [
        (Concept("<toy>", anchor="circle"), "<toy>", "circle"),
        (Concept("star", aliases=["<toy>"], anchor="circle"), "<toy>", "circle"),
        (Concept("star", anchor="<toy>"), "star", "<toy>"),
    ],
)
def test_a_textual_inversion_of_several_vectors_is_read_as_the_pipeline_reads_it(toy, concept, asked, becomes):
    def look(text: str) -> torch.Tensor:
        return draw(toy, text, guidance_scale=1.0)

    before, anchor = look(asked), look(becomes)
    assert (before - anchor).norm() > 1e-2 * anchor.norm()
    with get_eraser("uce", rows="all", ridge=1e-6, cache=False).fit(toy, concept).applied(toy):
        assert (look(asked) - anchor).norm() < 1e-3 * anchor.norm()


def test_every_reader_of_prompts_reads_textual_inversions_whole(toy):
    ids = toy.tokenizer(toy.maybe_convert_prompt("a <toy>", toy.tokenizer)).input_ids
    assert len(ids) == 7
    assert tokenise(toy, "a <toy>")[0, :7].tolist() == ids
    assert find_blocks(toy)[0].tokens(["a <toy>"])[0][0, :7].tolist() == ids
    assert get_eraser("uce").prepared(toy, Concept("<toy>", anchor="art"))[0].aliases == ()


def test_spellings():
    assert spellings("vincent van gogh") == (
        "vincent van gogh",
        "Vincent Van Gogh",
        "Vincent van Gogh",
        "Vincent van gogh",
        "VINCENT VAN GOGH",
    )
    assert spellings("Star") == ("star", "Star", "STAR")


def test_usual_spellings_are_erased_where_case_matters(tmp_path, monkeypatch):
    import support.families.t5 as t5

    monkeypatch.setattr(t5, "MORE_WORDS", [*t5.MORE_WORDS, "Van", "Gogh"])
    family = FAMILIES["flux"]
    pipe = family.build(tmp_path)
    options = {"rows": "all", "ridge": 1e-6, "neighbours": False, "max_sequence_length": 16}
    patch = get_eraser("uce", **options).fit(pipe, Concept.of("Van Gogh"))
    assert patch.meta["concepts"][0]["aliases"] == ["vincent van gogh", "Van Gogh", "van Gogh", "Van gogh"]

    def look(text: str) -> torch.Tensor:
        return draw_family(pipe, text, family.options)

    spoken = ("Van Gogh", "van gogh", "van Gogh")
    before, anchor = {text: look(text) for text in spoken}, look("art")
    with patch.applied(pipe):
        for text in spoken:
            assert (look(text) - anchor).norm() < 0.05 * (before[text] - anchor).norm()


def test_a_tokenizer_without_case_needs_no_spellings(pipe):
    assert get_eraser("uce").prepared(pipe, Concept.preset("van gogh"))[0].aliases == ("vincent van gogh",)


# What is kept


def test_the_captions_are_many_distinct_and_of_all_lengths():
    lengths = [len(text.split()) for text in everyday()]
    assert len(set(everyday())) == len(everyday()) >= 300
    assert min(lengths) <= 5
    assert max(lengths) >= 15
    assert all(text == text.strip() and text.isascii() for text in everyday())


@pytest.mark.parametrize("name", ["dog", "animal", "woman", "church", "van gogh", "food"])
def test_captions_that_name_the_concept_are_left_out(name):
    concept = Concept.of(name)
    kept = captions_without([concept])
    assert len(kept) >= 200
    assert not any(mentions(text, term) for text in kept for term in concept.terms())
    assert {"animal": "a photo of a dog running along a beach", "dog": "a puppy chewing on an old shoe"}.get(
        name
    ) not in kept


@pytest.mark.parametrize("method", only(ANY_FAMILY, "uce", "esd", "itd"))
def test_every_method_keeps_captions_when_nothing_is_preserved(pipe, tmp_path, method):
    pipe = reading(pipe)
    rows: set[tuple[int, ...]] = set()
    options = dict(QUICK.get(method, {})) | ({"sae": save_saes(pipe, tmp_path), **OPTIONS} if method == "itd" else {})
    eraser = get_eraser(method, **options)
    pipe.text_encoder.register_forward_pre_hook(
        lambda module, args, given: rows.update(map(tuple, (args[0] if args else given["input_ids"]).tolist())),
        with_kwargs=True,
    )
    # The autoencoder has features for few words.
    concept = Concept("star", aliases=["pentagram" if method == "itd" else "dog"], anchor="circle")
    patch = eraser.fit(pipe, concept, progress=False, generator=torch.Generator().manual_seed(0))
    encoded = {text for text in everyday() if tuple(tokenise(pipe, text)[0].tolist()) in rows}
    recorded = patch.meta["concepts"][0].get("captions")
    if not type(eraser).keeps:
        assert method in ("esd", "safe", "concept_slider", "stereo")
        assert not encoded
        assert recorded is None
        return
    assert len(encoded) >= 3
    assert encoded <= set(captions_without([concept]))
    assert not any(mentions(text, word) for text in encoded for word in concept.terms())
    assert recorded["name"] == NAME
    assert recorded["count"] == len(captions_without([concept]))
    assert "preserve" not in patch.meta["concepts"][0]


def test_captions_can_be_turned_off_and_give_way_to_texts_of_ones_own(pipe):
    pipe = reading(pipe)
    few, many = tuple(everyday()[:3]), tuple(f"a ring {'a ' * number}circle" for number in range(ENOUGH))
    counts = {
        "off": len(get_eraser("uce", everyday=False).prepared(pipe, STAR)[0].preserve),
        "official": len(get_eraser("uce-v1").prepared(pipe, STAR)[0].preserve),
        "few": len(get_eraser("uce").prepared(pipe, Concept("star", anchor="ring", preserve=few))[0].preserve),
        "many": len(get_eraser("uce").prepared(pipe, Concept("star", anchor="ring", preserve=many))[0].preserve),
    }
    assert counts == {"off": 0, "official": 0, "few": len(captions_without([STAR])), "many": ENOUGH}


def test_captions_that_an_encoder_spells_by_letters_or_does_not_know_are_not_kept(pipe):
    assert get_eraser("uce").prepared(pipe, STAR)[0].preserve == ()


def test_on_the_embedded_model_nothing_changes():
    pipe = load_pipeline("shapes")
    for word in (word for words in KINDS.values() for word in words):
        assert get_eraser("uce").prepared(pipe, concept_for(word)) == (concept_for(word),)
    assert get_eraser("uce").prepared(pipe, STAR) == (STAR,)


def test_a_patch_with_captions_is_saved_and_read(pipe, tmp_path: Path):
    patch = get_eraser("uce").fit(reading(pipe), STAR)
    patch.save(tmp_path / "star.safetensors")
    found = Patch.load(tmp_path / "star.safetensors").meta["concepts"][0]["captions"]
    assert set(found) == {"name", "sha256", "count"}
