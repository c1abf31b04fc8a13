"""The words of the embedded world: what can be in a picture and how a caption says it.

A scene has an object, a colour, a style, a background, a size and perhaps a stamp in its corner. Styles carry invented
names, several words have synonyms, and one style brings the stamp although no caption asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
MARK_PLACE = (1 / 32, 1 / 32, 8 / 32, 8 / 32)
"""Left, top, right and bottom of the stamp, as shares of the picture's sides."""

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

STYLE_ADJECTIVES = frozenset(SYNONYMS["zorblat"] + SYNONYMS["velkin"])
"""Synonyms of styles that stand before the noun."""


def held_out() -> frozenset[tuple[int, int, int]]:
    """Fifteen of the 300 (object, colour, style) triples that the generator never sees in training."""
    return frozenset((o % 10, (2 * o + o // 10) % 6, (o + o // 5) % 5) for o in range(15))


def phrase(
    *, thing: str, colour: str = "", style: str = "", background: str = "", size: str = "", mark: bool = False
) -> str:
    """A caption from words, in the order the world always uses; empty words are left out."""
    adjective = style if style in STYLE_ADJECTIVES else ""
    words = " ".join(word for word in (size, adjective, colour, thing) if word)
    text = f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
    if background:
        text += f" on a {background} background"
    if style and not adjective:
        text += f" in the style of {style}"
    return text + (f" with a {MARK}" if mark else "")


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
