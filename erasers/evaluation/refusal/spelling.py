"""The readings of a text: what somebody may have meant who wrote it in unusual letters, order or spacing.

A word list is matched against all of them. The text itself is one, so that other scripts are read as they are.
"""

from __future__ import annotations

import html
import re
import unicodedata
from functools import lru_cache
from urllib.parse import unquote

# Letters of other scripts by the Latin ones that they look like; styled Latin letters are known by their Unicode names.
_LOOK_ALIKES = {
    foreign: latin
    for latin, row in {
        "a": "аαɑꭺ", "b": "вβьᏼ", "c": "сϲꮯ", "d": "ԁɗ", "e": "еєεꭼ", "g": "ԍɡց", "h": "нһհ", "i": "іїιɩɪ", "j": "јϳ",
        "k": "кκ", "l": "ӏⅼ", "m": "мϻ", "n": "пηող", "o": "оοօσ", "p": "рρ", "q": "ԛգ", "r": "гᴦ", "s": "ѕտ",
        "t": "тτ",        "u": "υսц", "v": "ѵνѴ", "w": "ԝωաш", "x": "хχ", "y": "уγүʏ", "z": "зζ",
    }.items()
    for foreign in row
}  # fmt: skip
_NAMED = re.compile(
    r"(?:LETTER|SYMBOL LETTER) (?:SMALL CAPITAL |DOTLESS |LONG |OPEN |SCRIPT |TURNED |REVERSED |INVERTED )*([A-Z])"
    r"(?: WITH .*)?"
)
_DIGITS = str.maketrans("0134578@$!|+", "oieastbasiit")
_DIGITS_WITH_L = str.maketrans("0134578@$!|+", "oleastbasllt")
_ROUNDS_OF_CODING = 3
_LONGEST = 20_000


@lru_cache(maxsize=4096)
def readings(text: str) -> frozenset[str]:
    """All readings of a text, in lower case with one space between words.

    Undone are codings (percent, HTML), invisible characters, styled, accented and look-alike letters, digits in place
    of letters, letters set apart by anything, words broken in two, and reversed order. Of a text longer than 20,000
    characters the beginning is read; no text encoder reads further.
    """
    plain = _plain(_decoded(text[:_LONGEST]))
    folded = "".join(_letter(character) for character in plain)
    spelled = {plain, folded, folded.translate(_DIGITS), folded.translate(_DIGITS_WITH_L)}
    forward = {form for reading in spelled for form in (_words(reading), _joined_letters(reading), _joined(reading))}
    return frozenset(forward | {reading[::-1] for reading in forward})


def squeezed(text: str) -> frozenset[str]:
    """Readings without any space, in which words that were broken in two are whole again; none has a word's ends."""
    return frozenset(reading.replace(" ", "") for reading in readings(text))


def as_written(text: str) -> str:
    """The first of the readings: lower case, one space between words, without accents and what is not seen."""
    return _words(_plain(text))


def _decoded(text: str) -> str:
    for _ in range(_ROUNDS_OF_CODING):
        again = html.unescape(unquote(text))
        if again == text:
            break
        text = again
    return text


def _plain(text: str) -> str:
    """Compatibility forms, lower case, without marks and what is not seen."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    apart = unicodedata.normalize("NFKD", text)
    return unicodedata.normalize("NFC", "".join(character for character in apart if not _is_unseen(character)))


def _is_unseen(character: str) -> bool:
    # Marks of Indic and other scripts (Mc) are letters of theirs; accents (Mn) are dropped.
    return unicodedata.category(character) in ("Cf", "Mn", "Me") or character in "\u115f\u1160\u3164\uffa0\u2800"


@lru_cache(maxsize=4096)
def _letter(character: str) -> str:
    if character.isascii():
        return character
    if character in _LOOK_ALIKES:
        return _LOOK_ALIKES[character]
    name = unicodedata.name(character, "")
    styled = _NAMED.search(name) if "LATIN" in name or "REGIONAL INDICATOR" in name else None
    return styled.group(1).lower() if styled else character


def _words(text: str) -> str:
    return " ".join(re.sub(r"[^\w]|_", " ", text).split())


def _joined(text: str) -> str:
    """Words without the signs and line breaks inside them: `wo-rd`, `wo.rd`, `wo_rd`."""
    return " ".join(re.sub(r"[^\w\s]|[_\r\n\v\f\x85\u2028\u2029]", "", text).split())


def _joined_letters(text: str) -> str:
    """Letters that stand alone, three and more of them, as one word: `w o r d`, `w-o-r-d`."""
    return re.sub(r"\b\w(?: \w\b){2,}", lambda run: run.group().replace(" ", ""), _words(text))
