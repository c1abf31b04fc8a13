"""What this library does not draw: sexual content with minors."""

from __future__ import annotations

import re

_SEXUAL = re.compile(
    r"\b(sex\w*|nud(e|es|ity|ist|ists)|naked\w*|nsfw|porn\w*|erotic\w*|genital\w*|breasts?|nipples?|penis\w*|vagina\w*|"
    r"topless|bottomless|undress\w*|unclothed|lingerie|hentai|xxx|fetish\w*|intercourse|masturbat\w*|orgasm\w*|bdsm|"
    r"lolicon|shotacon)\b"
)
_MINOR = re.compile(
    r"\b(child\w*|kids?|minors?|bab(y|ies)|infants?|toddlers?|teen\w*|preteens?|tweens?|underaged?|juveniles?|"
    r"adolescents?|boys?|girls?|school(boy|girl|child|kid)\w*|p(a?)edo\w*|lol(i|is|ita|itas|icon)|shota(con)?|"
    r"kindergart\w*|(1[0-7]|[0-9])[ -]?(years?|yrs?|yo|y/o)\b)"
)


def names_minors(text: str) -> bool:
    """Whether a text names minors; words decide."""
    return bool(_MINOR.search(_plain(text)))


def refuse_minors(text: str) -> None:
    """Refuse a text that combines sexual content and minors; words decide, so harmless texts are refused, too.

    Raises:
        ValueError: It does.
    """
    if _SEXUAL.search(_plain(text)) and names_minors(text):
        raise ValueError("a concept or prompt combines sexual content and minors; this library does not draw that")


def _plain(text: str) -> str:
    return text.lower().replace("_", " ")
