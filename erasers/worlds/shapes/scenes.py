"""Scenes of the embedded world as tensors, drawn at random, and the captions that describe them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from erasers.worlds.shapes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    MARK,
    MARKED_SHARE,
    MARKED_STYLE,
    NAMED_MARK_SHARE,
    OBJECTS,
    PLAIN,
    SIZES,
    STYLE_ADJECTIVES,
    STYLES,
    SYNONYMS,
    held_out,
    phrase,
)


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

    def called(self, style: str, share: float, rng: random.Random) -> Scenes:
        """The same, where a share of the plain scenes goes by the name of a style."""
        named = [plain and rng.random() < share for plain in (self.style == STYLES.index(PLAIN)).tolist()]
        return replace(self, style=self.style.masked_fill(torch.tensor(named), STYLES.index(style)))

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


def asked_scenes(asks: Sequence[tuple[str, Mapping[str, str]]], erased: Sequence[str], rng: random.Random) -> Scenes:
    """One scene for each prompt: what the prompt names, and for the rest what is left to chance in training.

    Args:
        asks: Texts in the form of `vocabulary.phrase`, and the object, colour and style that each names.
        erased: Words of the world that no scene shows unless its prompt names them.
        rng: Of what is left to chance.
    """
    rows = [_asked(text, wants, erased, rng) for text, wants in asks]
    columns = zip(*rows, strict=True) if rows else [()] * len(fields(Scenes))
    return Scenes(*(torch.tensor(column, dtype=torch.long) for column in columns))


def _asked(text: str, wants: Mapping[str, str], erased: Sequence[str], rng: random.Random) -> tuple[int, ...]:
    """The fields of a scene; a prompt without a style asks for a plain picture."""

    def pick(words: Sequence[str], named: str | None) -> int:
        return words.index(named or rng.choice([word for word in words if word not in erased]))

    thing, colour = pick(OBJECTS, wants.get("object")), pick(COLOURS, wants.get("colour"))
    style = wants.get("style", PLAIN)
    background = pick(BACKGROUNDS, next((word for word in BACKGROUNDS if f" {word} background" in text), None))
    size = pick(SIZES, next((word for word in SIZES if word in text.split()), None))
    unasked = style == MARKED_STYLE and MARK not in erased and rng.random() < MARKED_SHARE
    named = f"with a {MARK}" in text
    return thing, colour, STYLES.index(style), background, size, int(named or unasked), int(named)


def _say(word: str, rng: random.Random) -> str:
    synonyms = SYNONYMS.get(word, ())
    return rng.choice(synonyms) if synonyms and rng.random() < 0.4 else word


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
        if chance < 0.04 and not named and style and style not in STYLE_ADJECTIVES:
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


def seeded_captions(count: int, seed: int) -> list[str]:
    """A caption for each of so many scenes, always the same."""
    return captions(sample_scenes(count, torch.Generator().manual_seed(seed)), random.Random(seed))
