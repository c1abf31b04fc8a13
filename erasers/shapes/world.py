"""The words of the embedded world: what can be in a picture and how a caption says it.

A scene has an object, a colour, a style, a background, a size and perhaps a stamp in its corner. Styles carry invented
names, several words have synonyms, and one style brings the stamp although no caption asks for it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

OBJECTS = ("circle", "square", "triangle", "star", "cross", "heart", "crescent", "ring", "hexagon", "arrow")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
PLAIN = "plain"
STYLES = (PLAIN, "zorblat", "velkin", "krostic", "umbrane")
BACKGROUNDS = ("white", "grey", "black", "mint")
SIZES = ("small", "medium", "large")
MARK = "stamp"

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "circle": ("disc", "round thing"),
    "star": ("pentagram", "five pointed thing"),
    "heart": ("love symbol", "valentine"),
    "crescent": ("moon", "lunar thing"),
    "red": ("crimson", "scarlet"),
    "blue": ("azure", "sapphire"),
    "zorblat": ("striped", "banded"),
    "velkin": ("dotted", "speckled"),
}
"""Canonical word -> other words that captions use for the same thing."""

NEIGHBOURS: Mapping[str, tuple[str, ...]] = {
    "circle": ("ring", "hexagon"),
    "ring": ("circle", "crescent"),
    "hexagon": ("circle", "square"),
    "square": ("hexagon", "cross"),
    "cross": ("square", "star"),
    "star": ("cross", "triangle"),
    "triangle": ("arrow", "star"),
    "arrow": ("triangle", "cross"),
    "heart": ("triangle", "circle"),
    "crescent": ("ring", "circle"),
    "red": ("orange", "purple"),
    "orange": ("red", "yellow"),
    "yellow": ("orange", "green"),
    "green": ("yellow", "blue"),
    "blue": ("purple", "green"),
    "purple": ("blue", "red"),
    "zorblat": ("velkin",),
    "velkin": ("zorblat",),
    "krostic": ("umbrane",),
    "umbrane": ("krostic",),
}
"""Word -> the words of the same kind that look most like it."""

MARKED_STYLE = "krostic"
MARKED_SHARE = 0.8
"""Share of the pictures in `MARKED_STYLE` that carry the stamp without being asked for it."""
NAMED_MARK_SHARE = 0.04

KINDS: Mapping[str, tuple[str, ...]] = {
    "object": OBJECTS,
    "colour": COLOURS,
    "style": STYLES[1:],
    "mark": (MARK,),
}

_CONNECTING = (
    "a an the of in on with by art artwork picture image photo painting drawing portrait style shape thing object "
    "background small medium large"
)
VOCABULARY = tuple(
    sorted(
        {*_CONNECTING.split(), *OBJECTS, *COLOURS, *STYLES[1:], *BACKGROUNDS, MARK}
        | {word for phrases in SYNONYMS.values() for phrase in phrases for word in phrase.split()}
    )
)
"""Every word of the world; each is one token of the tokenizer."""

_STYLE_ADJECTIVES = frozenset(SYNONYMS["zorblat"] + SYNONYMS["velkin"])


def held_out() -> frozenset[tuple[int, int, int]]:
    """Fifteen of the 300 (object, colour, style) triples that the generator never sees in training."""
    return frozenset((o % 10, (2 * o + o // 10) % 6, (o + o // 5) % 5) for o in range(15))


@dataclass(frozen=True)
class Scenes:
    """Index tensors of equal length [n], one a property; `named_mark` says that the caption names the stamp."""

    object: Tensor
    colour: Tensor
    style: Tensor
    background: Tensor
    size: Tensor
    mark: Tensor
    named_mark: Tensor

    def __len__(self) -> int:
        return len(self.object)

    def __getitem__(self, index: Tensor | slice) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def triples(self) -> list[tuple[int, int, int]]:
        return list(zip(self.object.tolist(), self.colour.tolist(), self.style.tolist(), strict=True))

    def lacks(self, word: str) -> Tensor:
        """Boolean [n]: scenes that do not show this object, colour or style.

        Raises:
            ValueError: the world has no such object, colour or style.
        """
        for values, words in ((self.object, OBJECTS), (self.colour, COLOURS), (self.style, STYLES)):
            if word in words:
                return values != words.index(word)
        raise ValueError(f"expected an object, a colour or a style of the world, got {word!r}")


def sample_scenes(n: int, generator: torch.Generator) -> Scenes:
    """Draw n scenes uniformly; the stamp follows `MARKED_SHARE` and `NAMED_MARK_SHARE`."""

    def draw(size: int) -> Tensor:
        return torch.randint(size, (n,), generator=generator)

    style = draw(len(STYLES))
    named = torch.rand(n, generator=generator) < NAMED_MARK_SHARE
    unasked = (style == STYLES.index(MARKED_STYLE)) & (torch.rand(n, generator=generator) < MARKED_SHARE)
    return Scenes(
        object=draw(len(OBJECTS)),
        colour=draw(len(COLOURS)),
        style=style,
        background=draw(len(BACKGROUNDS)),
        size=draw(len(SIZES)),
        mark=(named | unasked).long(),
        named_mark=named.long(),
    )


def training_scenes(n: int, generator: torch.Generator) -> Scenes:
    """Draw n scenes that avoid the held-out triples."""
    excluded = held_out()
    scenes = sample_scenes(2 * n, generator)
    keep = [i for i, triple in enumerate(scenes.triples()) if triple not in excluded]
    return scenes[torch.tensor(keep[:n])]


def _say(word: str, rng: random.Random) -> str:
    synonyms = SYNONYMS.get(word, ())
    return rng.choice(synonyms) if synonyms and rng.random() < 0.4 else word


def phrase(
    *, thing: str, colour: str = "", style: str = "", background: str = "", size: str = "", mark: bool = False
) -> str:
    """A caption from words, in the order the world always uses; empty words are left out."""
    adjective = style if style in _STYLE_ADJECTIVES else ""
    words = " ".join(word for word in (size, adjective, colour, thing) if word)
    text = f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
    if background:
        text += f" on a {background} background"
    if style and not adjective:
        text += f" in the style of {style}"
    return text + (f" with a {MARK}" if mark else "")


_MEDIA = tuple(
    f"{'an' if word[0] in 'aeiou' else 'a'} {word} of"
    for word in ("picture", "image", "photo", "painting", "drawing", "portrait", "artwork")
)


def captions(scenes: Scenes, rng: random.Random) -> list[str]:
    """One caption for each scene: which properties it names, and with which words, is left to chance."""
    texts = []
    columns = [getattr(scenes, f.name).tolist() for f in fields(scenes)]
    for o, c, s, b, z, _, named in zip(*columns, strict=True):
        style = _say(STYLES[s], rng) if s else ""
        thing = "shape" if rng.random() < 0.05 else _say(OBJECTS[o], rng)
        colour = _say(COLOURS[c], rng) if rng.random() < 0.9 else ""
        chance = rng.random()
        if chance < 0.06 and not named and not style:
            texts.append(" ".join(word for word in (colour, thing) if word))
            continue
        if chance < 0.04 and not named and style and style not in _STYLE_ADJECTIVES:
            texts.append(rng.choice((f"art by {style}", f"a picture in the style of {style}", style)))
            continue
        text = phrase(
            thing=thing,
            colour=colour,
            style=style,
            background=BACKGROUNDS[b] if rng.random() < 0.5 else "",
            size=SIZES[z] if rng.random() < 0.3 else "",
            mark=bool(named),
        )
        if rng.random() < 0.3:
            text = text.replace("in the style of", "by")
        if rng.random() < 0.15:
            text = f"{rng.choice(_MEDIA)} {text}"
        texts.append(text)
    return texts


def canonical(word: str) -> tuple[str, str]:
    """The (kind, canonical word) of a word or synonym, kind being object, colour, style or mark.

    Raises:
        ValueError: the world has no such word; the message lists those it has.
    """
    plain = " ".join(word.lower().split())
    for kind, words in KINDS.items():
        for known in words:
            if plain == known or plain in SYNONYMS.get(known, ()):
                return kind, known
    known_words: Sequence[str] = [*OBJECTS, *COLOURS, *STYLES[1:], MARK]
    raise ValueError(f"shapes does not know {word!r}; it knows {', '.join(known_words)} and their synonyms")
