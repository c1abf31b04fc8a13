"""Files of a user's own: texts to preserve, tables of concepts, folders of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from erasers import Patch, worlds
from erasers.cli import app as cli
from erasers.cli.concept_files import read_concepts, read_images, read_lines
from erasers.cli.concepts import Words, build_concepts
from erasers.concept.words import hypernym
from erasers.training.pictures import picture

YAML = """
- concept: dragon
  aliases: [drake, wyvern]
  preserve: [a castle on a hill]
- concept: some painter
  kind: style
- van gogh
- {concept: pikachu, kind: identity, anchor: a mouse}
"""
CSV = (
    "\ufeffconcept,anchor,aliases,preserve,kind\n"
    'dragon,,drake;wyvern,"a castle, on a hill;a boat",\n'
    "some painter,,,,style\n"
    "church,tower,,,\n"
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def built(**options: Any) -> dict[str, Any]:
    return {concept.name: concept for concept in build_concepts([], Words(**options))}


@pytest.mark.parametrize("text", [YAML, YAML.replace("- van gogh", "- {concept: van gogh}")])
def test_a_table_of_concepts_in_yaml(text: str) -> None:
    Path("c.yaml").write_text(text)
    concepts = built(concepts_file=Path("c.yaml"), preserve=["a boat"], anchor=["van gogh=a picture"])
    assert list(concepts) == ["dragon", "some painter", "van gogh", "pikachu"]
    assert (concepts["dragon"].anchor, concepts["dragon"].aliases) == ("creature", ("drake", "wyvern"))
    assert concepts["dragon"].preserve == ("a castle on a hill", "a boat")
    assert (concepts["some painter"].kind, concepts["some painter"].anchor) == ("style", "")
    assert (concepts["van gogh"].aliases, concepts["van gogh"].anchor) == (("vincent van gogh",), "a picture")
    assert (concepts["pikachu"].kind, concepts["pikachu"].anchor) == ("identity", "a mouse")


def test_a_table_by_concept() -> None:
    Path("c.yml").write_text("dragon: {anchor: lizard}\nmoon:\n")
    concepts = built(concepts_file=Path("c.yml"))
    assert {name: concept.anchor for name, concept in concepts.items()} == {
        "dragon": "lizard",
        "moon": "celestial body",
    }


def test_a_table_of_concepts_in_csv() -> None:
    Path("c.csv").write_text(CSV, encoding="utf-8")
    concepts = built(concepts_file=Path("c.csv"))
    assert concepts["dragon"].aliases == ("drake", "wyvern")
    assert concepts["dragon"].preserve == ("a castle, on a hill", "a boat")
    assert (concepts["some painter"].kind, concepts["some painter"].anchor) == ("style", "")
    assert (concepts["church"].anchor, concepts["church"].aliases) == ("tower", ("chapel", "cathedral"))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.yaml", "", "got NoneType"),
        ("c.yaml", "[]", "expected 1 to 1000 concepts, got 0"),
        ("c.yaml", "- {anchor: art}", "concept 1: expected a name under 'concept'"),
        ("c.yaml", "- {concept: x, ancor: art}", "expected columns among concept, anchor.*got 'ancor'"),
        ("c.yaml", "- {concept: x, aliases: [3]}", "expected text under 'aliases'"),
        ("c.yaml", "- {concept: x, anchor: [a, b]}", "expected text under 'anchor'"),
        ("c.yaml", "- {concept: x, kind: colour}", "expected a kind among object, style"),
        ("c.yaml", "{concept: x, anchor: art}", "a table of concept, anchor"),
        ("c.yaml", "a: &a [*a]", "expected YAML"),
        ("c.yaml", "x" * ((1 << 20) + 1), "at most 1 MB"),
        ("c.csv", "anchor\nart\n", "concept 1: expected a name"),
        ("c.csv", 'concept\n"x', "expected CSV"),
        ("c.csv", "concept\nx,y\n", "expected columns among"),
    ],
)
def test_bad_tables_are_refused(name: str, text: str, words: str) -> None:
    Path(name).write_text(text)
    with pytest.raises(ValueError, match=words):
        read_concepts(Path(name))


def test_files_that_are_none() -> None:
    Path("bytes").write_bytes(b"\xff\xfe\x00a")
    Path("empty").write_text("\n \n")
    with pytest.raises(ValueError, match="text in UTF-8"):
        read_lines(Path("bytes"), "--preserve-file")
    with pytest.raises(ValueError, match="expected texts, one a line, got none"):
        read_lines(Path("empty"), "--preserve-file")
    for path in (Path("missing"), Path()):
        with pytest.raises(FileNotFoundError, match="expected a file, got none"):
            read_lines(path, "--preserve-file")


def test_texts_to_preserve_reach_the_patch(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pipe.save_pretrained("sd")
    Path("kept.txt").write_text("\ufeffa moon\n\na ring, red\na moon\r\n", encoding="utf-8")
    Path("c.csv").write_text("concept,anchor\nmoon,art\n")
    options = ("--model", "sd", "--method", "uce", "--out", "p.safetensors")
    with_file = ("--concept", "star", "--anchor", "star=circle", "--preserve-file", "kept.txt")
    assert cli.run([*with_file, *options]) == 0
    assert Patch.load("p.safetensors").meta["concepts"][0]["preserve"] == ["a moon", "a ring, red"]
    assert (
        cli.run(["--concept", "star", "--anchor", "star=circle", "--concepts-file", "c.csv", *options, "--overwrite"])
        == 0
    )
    concepts = Patch.load("p.safetensors").meta["concepts"]
    assert [(concept["name"], concept["anchor"]) for concept in concepts] == [("star", "circle"), ("moon", "art")]
    capsys.readouterr()
    assert cli.run(["--concepts-file", "c.csv", *options[:-1], "c.csv", "--overwrite"]) == 2
    assert "--out c.csv is also --concepts-file c.csv" in capsys.readouterr().err


def test_words_of_files_are_checked_on_the_embedded_model() -> None:
    Path("c.csv").write_text("concept,anchor\nstar,sphere\n")
    Path("kept.txt").write_text("a red dog\n")
    with pytest.raises(ValueError, match="shapes does not know the word 'sphere'"):
        build_concepts([], Words(concepts_file=Path("c.csv")), world=worlds.get("shapes"))
    with pytest.raises(ValueError, match="shapes does not know the word 'dog'"):
        build_concepts(["star"], Words(preserve_file=Path("kept.txt")), world=worlds.get("shapes"))


def photo(path: str, size: tuple[int, int] = (32, 24), orientation: int = 1) -> None:
    image = Image.new("RGB", size, "red")
    image.paste("blue", (0, 0, size[0], 4))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)


def test_pictures_reach_few_shot(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pipe.save_pretrained("sd")
    Path("shots").mkdir()
    for name in ("a.jpg", "b.png", "c.webp"):
        photo(f"shots/{name}")
    options = ("--concept", "star", "--anchor", "circle", "--model", "sd", "--out", "p.safetensors")
    quick = ("--method", "few_shot", "--set", "iterations=1", "--set", "max_drift=none")
    assert cli.run([*options, *quick, "--images", "shots"]) == 0
    assert Patch.load("p.safetensors").meta["concepts"][0]["images"] == 3
    capsys.readouterr()
    assert cli.run([*options, "--method", "uce", "--images", "shots", "--overwrite"]) == 2
    assert "--images is for methods that learn from pictures (few_shot), got uce" in capsys.readouterr().err


def test_pictures_by_concept() -> None:
    Path("shots").mkdir()
    photo("shots/a.png")
    concepts = build_concepts(["star", "moon"], Words(images=["moon=shots"]))
    assert [len(concept.images) for concept in concepts] == [0, 1]
    with pytest.raises(ValueError, match="with several concepts say whose it is, e.g. --images star=shots"):
        build_concepts(["star", "moon"], Words(images=["shots"]))


def test_pictures_stand_upright() -> None:
    photo("up.jpg")
    photo("turned.jpg", orientation=3)
    up, turned = (picture(name, (32, 24)) for name in ("up.jpg", "turned.jpg"))
    assert up.getpixel((16, 1))[2] > 200
    assert turned.getpixel((16, 22))[2] > 200
    assert turned.getpixel((16, 1))[2] < 60


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: None, r"expected 1 to 200 pictures, got 0 files"),
        (lambda: Path("shots/a.txt").write_text("no picture"), r"a\.txt: expected a picture"),
        (lambda: photo("shots/a.png", (8, 40)), r"a\.png: expected 16 to .* got 8 x 40"),
        (
            lambda: (photo("shots/a.jpg"), Path("shots/a.jpg").write_bytes(Path("shots/a.jpg").read_bytes()[:300])),
            "a.jpg",
        ),
        (lambda: Image.new("RGB", (20, 20)).save("shots/a.gif"), r"a\.gif: expected a picture"),
        (lambda: [photo(f"shots/{number}.png") for number in range(201)], "got 201 files"),
    ],
)
def test_bad_folders_of_pictures_are_refused(make: Any, words: str) -> None:
    Path("shots").mkdir()
    make()
    with pytest.raises(ValueError, match=words):
        read_images(Path("shots"))


def test_no_folder_of_pictures() -> None:
    with pytest.raises(ValueError, match="missing: expected a folder of pictures, got none"):
        read_images(Path("missing"))


def test_the_kind_of_a_concept_chooses_its_anchor(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pipe.save_pretrained("sd")
    options = ("--model", "sd", "--method", "uce", "--out", "p.safetensors", "--overwrite")
    for kind, anchor in (("identity", "a person"), ("style", ""), ("object", hypernym("star"))):
        assert cli.run(["--concept", "star", "--kind", kind, *options]) == 0
        (concept,) = Patch.load("p.safetensors").meta["concepts"]
        assert (concept["kind"], concept["anchor"]) == (kind, anchor)
    capsys.readouterr()
    assert cli.run(["--concept", "star", "--kind", "styl", *options]) == 2
    assert (
        "expected --kind among object, style, attribute, identity, unsafe, implicit, got 'styl' (did you"
        in " ".join(capsys.readouterr().err.split())
    )


def test_kinds_by_concept_and_over_a_table_or_preset() -> None:
    concepts = {concept.name: concept for concept in build_concepts(["star", "moon"], Words(kind=["moon=style"]))}
    assert {name: concept.kind for name, concept in concepts.items()} == {"star": "object", "moon": "style"}
    both = build_concepts(["star", "moon"], Words(kind=["identity", "moon=style"], anchor=["star=a friend"]))
    assert [(concept.kind, concept.anchor) for concept in both] == [("identity", "a friend"), ("style", "")]
    Path("c.yaml").write_text(YAML)
    assert built(concepts_file=Path("c.yaml"), kind=["some painter=identity"])["some painter"].anchor == "a person"
    (gogh,) = build_concepts(["van gogh"], Words(kind=["identity"]))
    assert (gogh.kind, gogh.aliases) == ("identity", ("vincent van gogh",))
    (red,) = build_concepts(["red"], Words(kind=["style"]), world=worlds.get("shapes"))
    assert (red.kind, red.anchor) == ("style", build_concepts(["red"], world=worlds.get("shapes"))[0].anchor)
    with pytest.raises(ValueError, match="expected one --kind for star, got 'style', 'object'"):
        build_concepts(["star"], Words(kind=["style", "object"]))
    with pytest.raises(ValueError, match="--kind 'sun=style': no --concept 'sun'"):
        build_concepts(["star"], Words(kind=["sun=style"]))
