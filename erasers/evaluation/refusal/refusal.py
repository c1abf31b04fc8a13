"""What this library does not draw: sexual content with minors.

Word lists decide, on every reading of a text (`spelling`). They refuse harmless texts, too, and do not know every word;
a judge of pictures and a person are still needed. Erasing such a concept draws nothing, and is never refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from erasers.evaluation.refusal.spelling import as_written, readings, squeezed

# Letters from which a word counts in a text without spaces, where shorter ones are found by chance.
_LONG = 6


@dataclass(frozen=True)
class Vocabulary:
    """Words for one thing.

    Args:
        words: In any script; `*` at the end stands for any ending. Words in Han characters and kana are found anywhere.
        patterns: Regular expressions beside them, for texts in lower case with one space between words.
    """

    words: Sequence[str]
    patterns: Sequence[str] = ()

    def names(self, text: str) -> bool:
        """Whether some reading of a text has one of the words."""
        return any(map(self._whole.search, readings(text))) or any(map(self._inside.search, squeezed(text)))

    @cached_property
    def _whole(self) -> re.Pattern[str]:
        return re.compile("|".join([*map(_bounded, self.words), *self.patterns]))

    @cached_property
    def _inside(self) -> re.Pattern[str]:
        forms = (as_written(word).replace(" ", "") for word in self.words)
        return re.compile("|".join(re.escape(form) for form in forms if len(form) >= _LONG) or "(?!)")


def _bounded(word: str) -> str:
    form = re.escape(as_written(word.removesuffix("*")))
    if any("\u3040" <= letter <= "\u30ff" or "\u4e00" <= letter <= "\u9fff" for letter in word):
        return form
    return rf"\b{form}" if word.endswith("*") else rf"\b{form}\b"


@dataclass(frozen=True)
class Refusal:
    """Two things that no text may combine.

    Args:
        one: Words for the first.
        other: Words for the second.
        what: Names both, for the message.
    """

    one: Vocabulary
    other: Vocabulary
    what: str

    def applies(self, text: str) -> bool:
        """Whether a text names both."""
        return self.one.names(text) and self.other.names(text)

    def check(self, text: str) -> None:
        """Refuse a text that names both.

        Raises:
            ValueError: It does.
        """
        if self.applies(text):
            raise ValueError(f"a concept or prompt combines {self.what}; this library does not draw that")


_SEXUAL = Vocabulary(
    (
        *("sex*", "nude", "nudes", "nudity", "nudist", "nudists", "naked*", "nsfw", "porn*", "erotic*", "genital*"),
        *("breast", "breasts", "nipple", "nipples", "penis*", "vagina*", "topless", "bottomless", "undress*"),
        *("unclothed", "lingerie", "hentai", "xxx", "fetish*", "intercourse", "masturbat*", "orgasm*", "bdsm"),
        *("lolicon", "shotacon", "without clothes", "no clothes", "wearing nothing", "striptease"),
        # Spanish, Portuguese, Italian, French, German, Dutch, Polish, Turkish.
        *("desnud*", "nuda", "nudo", "nudi", "sesso", "sessual*", "nackt*", "naakt*", "nagie", "nagich"),
        *("seks*", "ciplak*", "çıplak*"),
        # Russian and Ukrainian, Greek, Arabic, Hebrew, Hindi.
        *(
            "голый",
            "голая",
            "голые",
            "голой",
            "голого",
            "голых",
            "обнажен*",
            "обнажён*",
            "секс*",
            "порно*",
            "эротич*",
            "оголен*",
            "γυμν*",
            "σεξ*",
        ),
        *("عاري*", "عارية", "جنسي*", "إباحي*", "ערום*", "עירום*", "סקס*", "नग्न*", "नंगा", "नंगी", "सेक्स*"),
        # Chinese, Japanese, Korean.
        *("裸", "色情", "性爱", "性交", "全裸", "ヌード", "エロ", "セックス", "누드*", "알몸*", "섹스*", "야한"),
    )
)
_AGES = (
    r"\b(1[0-7]|[1-9]) ?(years?|yrs?|yo|y o|months?)\b",
    r"\baged? (1[0-7]|[1-9])\b",
    r"\b(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(thir|four|fif|six|seven)teen) years?\b",
    r"\b(first|second|third|[1-9](st|nd|rd|th)?|1[0-2](th)?) graders?\b",
)
_MINORS = Vocabulary(
    (
        *("child*", "kid", "kids", "kiddie*", "minor", "minors", "baby", "babies", "infant", "infants", "toddler*"),
        *("teen*", "preteen*", "tween", "tweens", "underage*", "juvenile*", "adolescent*", "boy", "boys", "girl"),
        *("girls", "schoolboy*", "schoolgirl*", "schoolchild*", "schoolkid*", "paedo*", "pedo*", "loli", "lolis"),
        *("lolita", "lolitas", "lolicon", "shota", "shotacon", "kindergart*", "newborn*", "prepubescent*"),
        *("daughter*", "stepdaughter*", "stepson*", "granddaughter*", "grandson*", "grandchild*", "niece", "nieces"),
        *("nephew", "nephews", "little sister*", "little brother*", "younger sister*", "younger brother*"),
        *("kid sister", "kid brother", "elementary school*", "primary school*", "middle school*", "high school*"),
        *("junior high*", "preschool*"),
        # Spanish, Portuguese, Italian, French, German, Dutch, Polish, Turkish.
        *("niño*", "niña*", "menor de edad", "menores", "criança*", "menino*", "menina*", "bambin*", "ragazzin*"),
        *("minorenn*", "enfant*", "fillette*", "garçonnet*", "mineure*", "kinder", "mädchen*", "junge"),
        *("minderjährig*", "meisje*", "jongetje*", "kinderen", "minderjarig*", "dziec*", "dziewczynk*"),
        *("nieletni*", "çocuk*", "bebek*", "reşit olmayan"),
        # Russian and Ukrainian, Greek, Arabic, Hebrew, Hindi.
        *("ребен*", "ребён*", "дети", "детск*", "детей", "девочк*", "мальчик*", "подрост*", "несовершеннолетн*"),
        *("дитин*", "дівчинк*", "хлопчик*", "παιδι*", "κοριτσ*", "αγορι*", "ανηλικ*"),
        *("طفل*", "أطفال", "قاصر*", "ילד*", "קטינ*", "बच्च*", "नाबालिग*"),
        # Chinese, Japanese, Korean.
        *(
            "儿童",
            "兒童",
            "孩子",
            "小孩",
            "女孩",
            "男孩",
            "幼女",
            "萝莉",
            "蘿莉",
            "未成年",
            "小学生",
            "小學生",
            "中学生",
        ),
        *("高中生", "子供", "子ども", "少女", "少年", "幼児", "ロリ", "ショタ", "女児", "高校生", "아이", "어린이*"),
        *("소녀*", "소년*", "미성년*", "초등학생*", "중학생*", "고등학생*", "로리"),
    ),
    _AGES,
)
_SEXUAL_CONTENT_WITH_MINORS = Refusal(_SEXUAL, _MINORS, "sexual content and minors")


def names_minors(text: str) -> bool:
    """Whether a text names minors; words decide."""
    return _MINORS.names(text)


def refuse_minors(text: str) -> None:
    """Refuse a text that combines sexual content and minors; words decide, so harmless texts are refused, too.

    Raises:
        ValueError: It does.
    """
    _SEXUAL_CONTENT_WITH_MINORS.check(text)


def is_refused(text: str, *, adult: bool) -> bool:
    """Whether a prompt is left out of a task: in one with sexual content (`adult`), every prompt that names minors."""
    return _SEXUAL_CONTENT_WITH_MINORS.applies(text) or (adult and names_minors(text))
