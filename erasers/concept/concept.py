"""What is erased: a `Concept`, and the named presets of `concepts.yaml`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal, TypeAlias, get_args

from erasers.concept.words import hypernym
from erasers.files.reading import parse_yaml

Kind: TypeAlias = Literal["object", "style", "attribute", "identity", "unsafe", "implicit"]
KINDS: tuple[str, ...] = get_args(Kind)
NOT_GIVEN = "\0"
"""Stands for an anchor that was not given, where "" is one."""


@dataclass(frozen=True)
class Concept:
    """What goes, what it becomes and what must stay.

    Args:
        name: The concept, as one would write it in a prompt.
        aliases: Other names of it; they are erased too, each onto the same anchor.
        anchor: What the concept becomes; "" is the unconditional prompt. Where none is given, an object becomes what it
            is a kind of (`words.hypernym`), an identity "a person", and everything else "".
        kind: Decides which prompt templates a method uses.
        preserve: Concepts that must not move.
        neighbours: Concepts near this one that must survive; preserved like `preserve`, and reported apart.
        images: Example pictures, for methods that learn from pictures.
        templates: Patterns with one `{}` for the concept, in place of those of its kind; () has none of its own.

    Raises:
        ValueError: An empty name or text, or an unknown kind.
        TypeError: Something other than text where text is needed.
    """

    name: str
    _: KW_ONLY
    aliases: tuple[str, ...] = ()
    anchor: str = NOT_GIVEN
    kind: Kind = "object"
    preserve: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    images: tuple[Any, ...] = ()
    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", _text("name", self.name))
        if not isinstance(self.anchor, str):
            raise TypeError(f"expected the anchor of {self.name!r} as text, got {type(self.anchor).__name__}")
        if self.kind not in KINDS:
            raise ValueError(f"expected a kind among {', '.join(KINDS)}, got {self.kind!r}")
        anchor = usual_anchor(self.name, self.kind) if self.anchor == NOT_GIVEN else self.anchor.strip()
        object.__setattr__(self, "anchor", anchor)
        for field in ("aliases", "preserve", "neighbours", "templates"):
            object.__setattr__(self, field, _texts(field, getattr(self, field)))
        images: Any = self.images
        if isinstance(images, (str, bytes)) or not isinstance(images, Iterable):
            images = (images,)
        object.__setattr__(self, "images", tuple(images))

    @classmethod
    def preset(cls, name: str) -> Concept:
        """The concept of that name in `concepts.yaml`; upper case, `-` and `_` do not matter.

        Raises:
            ValueError: No preset of that name.
        """
        entry = _presets().get(_key(name))
        if entry is None:
            raise ValueError(f"expected a preset among {', '.join(preset_names())}, got {name!r}")
        fields = {key: value for key, value in entry.items() if key not in ("options", "group")}
        return cls(_key(name), **{"aliases": entry.get("group", ())} | fields)

    @classmethod
    def of(cls, concept: str | Concept) -> Concept:
        """A concept as it is; a string becomes the preset of that name, else `Concept(name)`."""
        if isinstance(concept, cls):
            return concept
        if not isinstance(concept, str):
            raise TypeError(f"expected a Concept or a string, got {type(concept).__name__}: {concept!r}")
        return cls.preset(concept) if _key(concept) in _presets() else cls(concept)

    def terms(self, *, aliases: bool = True) -> tuple[str, ...]:
        """The distinct texts to erase: the name, then the aliases.

        The preset `unsafe` is a group: its members are erased, its own name is not.
        """
        if self.aliases and "group" in _presets().get(_key(self.name), {}):
            return tuple(dict.fromkeys(self.aliases))
        return tuple(dict.fromkeys((self.name, *self.aliases))) if aliases else (self.name,)

    def kept(self) -> tuple[str, ...]:
        """The distinct texts that must not move: `preserve`, then `neighbours`."""
        return tuple(dict.fromkeys((*self.preserve, *self.neighbours)))


Concepts: TypeAlias = "Concept | str | Iterable[Concept | str]"


def as_concepts(concepts: Concepts) -> tuple[Concept, ...]:
    """One concept, a string or several of them, as a tuple of distinct concepts.

    Raises:
        ValueError: No concept at all, one name twice, or concepts that contradict themselves or each other: what is
            erased is preserved as well, or named by an anchor.
        TypeError: Neither a concept nor text.
    """
    if isinstance(concepts, (str, Concept)):
        concepts = (concepts,)
    if not isinstance(concepts, Iterable):
        raise TypeError(f"expected concepts as text or Concept objects, got {type(concepts).__name__}: {concepts!r}")
    listed = tuple(Concept.of(concept) for concept in concepts)
    if not listed:
        raise ValueError("expected at least one concept to erase, got none")
    names = [concept.name for concept in listed]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"expected each concept once, got twice: {', '.join(twice)}")
    _refuse_contradictions(listed)
    return listed


def usual_anchor(name: str, kind: str) -> str:
    """What a concept becomes when nobody says."""
    return {"object": hypernym(name), "identity": "a person"}.get(kind, "")


def _refuse_contradictions(concepts: Sequence[Concept]) -> None:
    erased = {_key(term): term for concept in concepts for term in concept.terms()}
    for concept in concepts:
        own = {_key(term) for term in concept.terms()}
        for text in concept.preserve:
            if text and _key(text) in erased:
                raise ValueError(f"expected preserved concepts other than the erased ones, got {text!r} in both")
        for text in concept.neighbours:
            if _key(text) in own:
                raise ValueError(f"expected neighbours of {concept.name!r} other than itself, got {text!r}")
        for key, term in erased.items():
            if names(_key(concept.anchor), key):
                raise ValueError(
                    f"expected anchors that differ from the concepts, got {concept.anchor!r} for {concept.name!r}, "
                    f"which names {term!r}; name another anchor"
                )


def preset_names() -> list[str]:
    """Names that `Concept.preset` knows, sorted."""
    return sorted(_presets())


def preset_options(name: str, method: str) -> dict[str, Any]:
    """The hyper-parameters that the paper of `method` gives for the preset `name`; {} when it gives none."""
    entry = _presets().get(_key(name), {})
    return dict(entry.get("options", {}).get(method, {}))


@lru_cache(maxsize=1)
def _presets() -> Mapping[str, Mapping[str, Any]]:
    loaded = parse_yaml(files("erasers.concept").joinpath("concepts.yaml").read_bytes(), "concepts.yaml")
    return {_key(name): entry or {} for name, entry in loaded.items()}


def _key(name: str) -> str:
    return " ".join(str(name).lower().replace("_", " ").replace("-", " ").split())


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected {field} of a concept as text, got {type(value).__name__}: {value!r}")
    if not value.strip():
        raise ValueError(f"expected a {field} with at least one letter, got {value!r}")
    return value.strip()


def _texts(field: str, values: object) -> tuple[str, ...]:
    if isinstance(values, str):
        values = (values,)
    if not isinstance(values, Iterable):
        raise TypeError(f"expected {field} as a sequence of texts, got {type(values).__name__}")
    # "" is a legitimate thing to preserve (the unconditional prompt), never an alias.
    return tuple(value if value == "" and field == "preserve" else _text(field, value) for value in values)


def names(text: str, term: str) -> bool:
    """Whether a prompt contains a term as whole words; upper case does not matter."""
    text, term = text.lower(), term.lower()
    return term in text and re.search(rf"(?<!\w){re.escape(term)}(?!\w)", text) is not None
