"""What a command erases: concepts out of its options and of files, checked before any loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erasers.cli.concept_files import concept_of, read_concepts, read_images, read_lines
from erasers.cli.words import suggest
from erasers.concept import KINDS, Concept, as_concepts

if TYPE_CHECKING:
    from erasers.worlds import World


@dataclass(frozen=True)
class Words:
    """What is said about the concepts."""

    anchor: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="What it becomes: TEXT, or CONCEPT=TEXT; '' for nothing in particular."),
    ] = None
    alias: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Another name to erase: TEXT, or CONCEPT=TEXT.")
    ] = None
    kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help=f"What it is: {', '.join(KINDS)}; or CONCEPT=KIND. Templates, the usual anchor and the judge of the "
            "report go by it. [dim]that of its preset, else object[/dim]",
        ),
    ] = None
    preserve: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="What must not move. Repeatable.")] = None
    preserve_file: Annotated[Path | None, typer.Option(help="Text file of the same, one a line.")] = None
    concepts_file: Annotated[
        Path | None,
        typer.Option(help="YAML or CSV of concepts: concept, anchor, aliases, preserve, neighbours, kind."),
    ] = None
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER", help="Example pictures, for few_shot: FOLDER, or CONCEPT=FOLDER. [dim]it draws them[/dim]"
        ),
    ] = None

    def files(self) -> dict[str, Path | None]:
        """What is read, by option."""
        return {"--preserve-file": self.preserve_file, "--concepts-file": self.concepts_file}


_NO_WORDS = Words()


def build_concepts(
    names: Sequence[str], words: Words = _NO_WORDS, *, world: World | None = None
) -> tuple[Concept, ...]:
    """The concepts of `--concept` and of a table, with what the other options say about them.

    Args:
        names: Those of `--concept`.
        words: Anchors and kinds are one for all, or `CONCEPT=TEXT`; aliases and folders of pictures are for the only
            concept, or `CONCEPT=TEXT`; what is preserved is so for all.
        world: Of an embedded model: every word has to be one of it, and a word brings its anchor.

    Raises:
        ValueError: No or empty concepts, words that the world does not know, or a file that is none of these.
    """
    listed = read_concepts(words.concepts_file) if words.concepts_file else []
    if not (names or listed):
        raise ValueError("no concept; say what goes, e.g. --concept star (erase --help has examples)")
    if any(not name.strip() for name in names):
        raise ValueError("an empty --concept; say what goes, e.g. --concept star")
    entries = [*({"concept": name.strip()} for name in names), *listed]
    said = _Said.of(words, [str(entry["concept"]) for entry in entries])
    if world:
        given = [text.partition("=")[2] if "=" in text else text for text in (*said.anchors, *said.aliases)]
        for text in (*given, *said.preserved, *(text for entry in listed for text in _texts_of(entry))):
            _check_vocabulary(world, text)
    return as_concepts([_build(entry, said, world) for entry in entries])


@dataclass(frozen=True)
class _Said:
    """`Words`, by concept; what is under "" is for every concept."""

    anchors: Sequence[str]
    aliases: Sequence[str]
    anchor: Mapping[str, Sequence[str]]
    alias: Mapping[str, Sequence[str]]
    images: Mapping[str, Sequence[str]]
    kind: Mapping[str, Sequence[str]]
    preserved: Sequence[str]

    @classmethod
    def of(cls, words: Words, names: Sequence[str]) -> _Said:
        """Read what is said, and the file of what is preserved."""
        return cls(
            anchors=words.anchor or (),
            aliases=words.alias or (),
            anchor=_per_concept("--anchor", words.anchor, names),
            alias=_per_concept("--alias", words.alias, names),
            images=_per_concept("--images", words.images, names),
            kind=_per_concept("--kind", words.kind, names),
            preserved=(*(words.preserve or ()), *_lines(words.preserve_file)),
        )


def _lines(path: Path | None) -> tuple[str, ...]:
    return read_lines(path, "--preserve-file") if path else ()


def _build(entry: Mapping[str, Any], said: _Said, world: World | None) -> Concept:
    """The concept of an entry, with what is said about it."""
    name = str(entry["concept"])
    kind = _only("--kind", said.kind, name)
    if kind is not None and kind not in KINDS:
        raise ValueError(f"expected --kind among {', '.join(KINDS)}, got {kind!r}{suggest(kind, KINDS)}")
    entry = entry if kind is None else {**entry, "kind": kind}
    concept = concept_of(entry, _concept_in(world, name) if world else Concept.of(name))
    anchor = _only("--anchor", said.anchor, name)
    concept = replace(concept, anchor=concept.anchor if anchor is None else anchor)
    concept = replace(concept, aliases=(*concept.aliases, *_for(said.alias, name)))
    pictures = [picture for folder in _for(said.images, name) for picture in read_images(Path(folder))]
    return replace(concept, preserve=(*concept.preserve, *said.preserved), images=(*concept.images, *pictures))


def anchor_notes(concepts: Sequence[Concept], words: Words) -> list[str]:
    """What each concept of `--concept` alone becomes that was given no `--anchor`."""
    anchors = words.anchor or ()
    if words.concepts_file or any("=" not in text for text in anchors):
        return []
    given = {text.partition("=")[0] for text in anchors}
    chosen = [concept for concept in concepts if concept.name not in given]
    return [
        f"{concept.name}: {concept.anchor or 'nothing in particular'} was chosen as its anchor; --anchor names another"
        for concept in chosen
    ]


def _per_concept(option: str, values: Sequence[str] | None, names: Sequence[str]) -> dict[str, list[str]]:
    """Values by concept name; those under "" are for every concept."""
    by_name: dict[str, list[str]] = {}
    for value in values or ():
        key, equals, text = value.partition("=")
        if equals and key not in names:
            raise ValueError(f"{option} {value!r}: no --concept {key!r}{suggest(key, names)}; got {', '.join(names)}")
        if not equals and option in ("--alias", "--images") and len(names) > 1:
            raise ValueError(
                f"{option} {value!r}: with several concepts say whose it is, e.g. {option} {names[0]}={value}"
            )
        by_name.setdefault(key if equals else "", []).append(text if equals else value)
    return by_name


def _for(values: Mapping[str, Sequence[str]], name: str) -> tuple[str, ...]:
    """The values for all concepts, then those of one."""
    return (*values.get("", ()), *values.get(name, ()))


def _only(option: str, values: Mapping[str, Sequence[str]], name: str) -> str | None:
    """The one value of a concept, its own or that for all; None where there is none.

    Raises:
        ValueError: Several.
    """
    given = values.get(name, values.get("", ()))
    if len(given) > 1:
        raise ValueError(f"expected one {option} for {name}, got {', '.join(map(repr, given))}")
    return given[0] if given else None


def _texts_of(entry: Mapping[str, Any]) -> list[str]:
    """The texts of an entry beside its name and kind."""
    values = [value for key, value in entry.items() if key not in ("concept", "kind")]
    return [text for value in values for text in ((value,) if isinstance(value, str) else value)]


def _concept_in(world: World, word: str) -> Concept:
    try:
        return world.concept(word)
    except ValueError as error:
        raise ValueError(f"{error}{suggest(word, world.words)}") from None


def _check_vocabulary(world: World, text: str) -> None:
    if unknown := world.unknown_words(text):
        close = suggest(unknown[0], world.vocabulary)
        raise ValueError(f"{world.name} does not know the word {unknown[0]!r} of {text!r}{close}")
