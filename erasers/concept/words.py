"""What English asks of a noun that is put into a prompt: its article, its plurals, and what it is a kind of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.resources import files

from erasers.files.reading import parse_yaml

FALLBACK = "something"
"""What an object becomes whose noun is not known."""

_DETERMINER = re.compile(r"(a|an|the|some|any|no|my|your|his|her|our|their|this|that|these|those|one|two|three)\s")
_WITHOUT_ARTICLE = re.compile(
    r"(some|any|every|no)(thing|one|body)|food|clothing|furniture|jewellery|equipment|art|nature"
)
_PLURAL = re.compile(r".*[^aius]s")
_AN = re.compile(r"[aeiou]|hour|honest|hono", re.IGNORECASE)
_AS_CONSONANT = re.compile(r"one\b|once|eu|ewe|uni(?!n|m)|us[aeub]|ut[aeio]|uk|ub|ufo|ura", re.IGNORECASE)
_IRREGULAR = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "mouse": "mice",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "ox": "oxen",
}


def with_article(noun: str) -> str:
    """The noun behind "a" or "an"; as it is where it takes none: plurals, what is no one thing, and names."""
    low = noun.lower()
    bare = _DETERMINER.match(low) or _WITHOUT_ARTICLE.fullmatch(low) or _PLURAL.fullmatch(low) or noun[:1].isupper()
    return noun if bare or not noun else f"{article(noun)} {noun}"


def article(following: str) -> str:
    """ "a" or "an", by how the text that follows begins."""
    return "an" if _AN.match(following) and not _AS_CONSONANT.match(following) else "a"


def plurals(term: str) -> tuple[str, ...]:
    """Ways in which a term may stand in the plural; some are no words."""
    head, _, last = term.rpartition(" ")
    forms = [f"{last}s", f"{last}es"]
    if last in _IRREGULAR:
        forms.append(_IRREGULAR[last])
    if last.endswith("man"):
        forms.append(f"{last[:-3]}men")
    if last.endswith("y"):
        forms.append(f"{last[:-1]}ies")
    forms += [f"{last.removesuffix(ending)}ves" for ending in ("fe", "f") if last.endswith(ending)]
    return tuple(f"{head} {form}".strip() for form in forms)


def mentions(text: str, term: str) -> bool:
    """Whether a text contains a term as whole words, in the singular or the plural; upper case does not matter."""
    low = term.lower()
    forms = "|".join(re.escape(form) for form in (low, *plurals(low)))
    return re.search(rf"(?<!\w)(?:{forms})(?!\w)", text.lower()) is not None


def kinds_of(noun: str) -> Iterator[str]:
    """What a noun is a kind of, from near to far: dog and animal for beagle; nothing for an unknown noun."""
    table = _hypernyms()
    while noun in table:
        noun = table[noun]
        yield noun


def hypernym(name: str) -> str:
    """What stands for an object: the hypernym of its noun, else the noun that its name ends in, else `FALLBACK`."""
    table = _hypernyms()
    known = set(table) | set(table.values())
    words = name.lower().replace("_", " ").replace("-", " ").split()
    for start in range(len(words)):
        noun = _singular(" ".join(words[start:]))
        if noun in known:
            return noun if start else table.get(noun, FALLBACK)
    return FALLBACK


def kinds_in(text: str) -> set[str]:
    """All that the nouns of a text are kinds of."""
    words = re.findall(r"[\w-]+", text.lower())
    pairs = [f"{left} {right}" for left, right in zip(words, words[1:], strict=False)]
    return {kind for phrase in (*words, *pairs) for kind in kinds_of(_singular(phrase))}


def _singular(noun: str) -> str:
    """The known noun of which this is a plural, else the noun itself."""
    return noun if noun in _hypernyms() else _singulars().get(noun, noun)


@lru_cache(maxsize=1)
def _hypernyms() -> Mapping[str, str]:
    loaded = parse_yaml(files("erasers.concept").joinpath("nouns.yaml").read_text(encoding="utf-8"), "nouns.yaml")
    return {noun: kind for kind, nouns in loaded.items() for noun in nouns}


@lru_cache(maxsize=1)
def _singulars() -> Mapping[str, str]:
    table = _hypernyms()
    return {form: noun for noun in (*table.values(), *table) for form in plurals(noun)}
