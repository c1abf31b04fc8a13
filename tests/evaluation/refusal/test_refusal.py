"""The refusal of two things together, with stand-ins for its words: however they are spelled, and nothing else."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest

from erasers.asks import PlainPrompt
from erasers.cli import app as cli
from erasers.evaluation.drawing import generate
from erasers.evaluation.refusal import refusal
from erasers.evaluation.refusal.refusal import Refusal, Vocabulary
from erasers.evaluation.refusal.spelling import readings

STAND_INS = Refusal(
    Vocabulary(("quartz", "opal*", "кремень", "水晶")),
    Vocabulary(("otter", "little badger", "ガゼル", "garçon*"), (r"\bage (1[0-7]|[1-9])\b",)),
    "stones and animals",
)


def fancy(word: str, first: str) -> str:
    """A word in another alphabet of styled letters, whose `a` is given."""
    return "".join(chr(ord(first) + ord(letter) - ord("a")) for letter in word)


SPELLINGS = {
    "as it is": "quartz",
    "upper case": "QUARTZ",
    "zero width": "qu\u200bart\u200dz",
    "soft hyphen": "qu\u00adartz",
    "word joiner": "q\u2060uartz",
    "hangul filler": "qua\u3164rtz",
    "spaced": "q u a r t z",
    "spaced widely": "q  u  a  r  t  z",
    "hyphened": "q-u-a-r-t-z",
    "dotted": "q.u.a.r.t.z",
    "underlined": "q_u_a_r_t_z",
    "broken by a hyphen": "qua-rtz",
    "broken by a line": "qua\nrtz",
    "broken by a space": "qua rtz",
    "cyrillic": "quаrtz",
    "greek": "quαrτz",
    "armenian": "զսartz".replace("զ", "q"),
    "bold": fancy("quartz", "𝐚"),
    "script": fancy("quartz", "𝓪"),
    "double-struck": fancy("quartz", "𝕒"),
    "monospace": fancy("quartz", "𝚊"),
    "full width": fancy("quartz", "ａ"),
    "circled": fancy("quartz", "ⓐ"),
    "squared": fancy("quartz", "🄰"),
    "white on black": fancy("quartz", "🅰"),
    "flags": " ".join(fancy("quartz", "🇦")),
    "small capitals": "ꞯᴜᴀʀᴛᴢ".replace("ꞯ", "q"),
    "accents": "qüàrťž",
    "many marks": "q\u0336u\u0336a\u0336r\u0336t\u0336z\u0336",
    "strokes": "quarŧz",
    "digits": "qu4r7z",
    "signs": "qu@rtz",
    "reversed": "ztrauq",
    "reversed and spaced": "z t r a u q",
    "percent": "qu%61rtz",
    "percent twice": "qu%2561rtz",
    "html": "qu&#97;rtz",
    "html and look-alike": "qu&#1072;rtz",
    "all at once": "ｑ-u\u200b-%D0%B0-r-t-z",
    "cyrillic word": "кремень",
    "cyrillic word in capitals": "КРЕМЕНЬ",
    "han": "一块水晶在桌上",
    "any ending": "opalescent",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(
    "rest", ["an otter", "o-t-t-e-r", "a LITTLE  badger", "ガゼル", "it is of age 12", "des garçons"]
)
def test_a_word_is_read_however_it_is_spelled(spelling: str, rest: str) -> None:
    for text in (f"{SPELLINGS[spelling]} with {rest}", f"{rest}, {SPELLINGS[spelling]}"):
        assert STAND_INS.applies(text)
        with pytest.raises(ValueError, match="combines stones and animals; this library does not draw that"):
            STAND_INS.check(text)
    assert not STAND_INS.applies(SPELLINGS[spelling])
    assert not STAND_INS.applies(rest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "quart of milk and an otter",
        "quartz of age 45",
        "quartz, a potterer's hat",
        "a copal bead with an otter",
        "quartz and a badger of little use",
        "quartz at age 123",
        "кремний и otter",
    ],
)
def test_other_words_pass(text: str) -> None:
    STAND_INS.check(text)


def test_everyday_prompts_pass() -> None:
    everyday = [f"a {size} {thing} {where}" for size in ("small", "old") for thing in THINGS for where in WHERE]
    assert not [text for text in everyday if STAND_INS.applies(text) or refusal.is_refused(text, adult=False)]
    assert not [text for text in everyday if refusal.is_refused(text, adult=True)]


THINGS = (
    "dog",
    "church",
    "essay on grapes",
    "pineapple",
    "river that snaked",
    "abreast parade",
    "analysis",
    "cockatoo",
)
WHERE = ("on a table", "in Essex, 1850", "by night; f/1.8, 50 mm", "after 45 years", "(masterpiece:1.2), [blurred]")


@pytest.mark.parametrize("text", ["a" * 100_000, "%25" * 5_000, "q-" * 10_000, "\u200b" * 50_000, "&amp;" * 4_000])
def test_no_text_takes_long(text: str) -> None:
    started = time.perf_counter()
    assert not STAND_INS.applies(text)
    assert time.perf_counter() - started < 5


def test_what_words_cannot_do() -> None:
    # Said in docs/security.md: a code that has to be known, another word, a picture of the thing by its parts.
    coded = base64.b64encode(b"quartz").decode()
    assert not STAND_INS.applies(f"{coded} and an otter")
    assert not STAND_INS.applies("a clear mineral and an otter")


def test_readings_are_cut_to_what_an_encoder_reads() -> None:
    assert not STAND_INS.applies("quartz " + "and " * 10_000 + "otter")
    assert all(len(reading) <= 20_000 for reading in readings("word " * 100_000))


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of the refusal, replaced by stand-ins."""
    monkeypatch.setattr(refusal, "_SEXUAL_CONTENT_WITH_MINORS", STAND_INS)
    monkeypatch.setattr(refusal, "_MINORS", STAND_INS.other)


@pytest.mark.usefixtures("stand_ins")
def test_nothing_that_draws_takes_such_a_prompt(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="does not draw that"):
        next(generate(None, [PlainPrompt("q-u-a-r-t-z, otter", 0)], steps=1, guidance=1.0))
    assert cli.run(["generate", "quartz, o\u200btter", "--model", "shapes", "--out", str(tmp_path / "a.png")]) == 2
    line = capsys.readouterr().err
    assert "this library does not draw that" in line
    assert "Traceback" not in line
    options = ["--concept", "quartz otter", "--model", "none/such", "--out", str(tmp_path / "a.safetensors")]
    assert cli.run([*options, "--report", str(tmp_path / "report")]) == 2
    assert "without --report the concept is erased all the same" in capsys.readouterr().err.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_in_a_task_with_sexual_content_every_minor_is_refused(stand_ins: None) -> None:
    assert refusal.is_refused("an otter", adult=True)
    assert not refusal.is_refused("an otter", adult=False)
    assert refusal.is_refused("an otter of quartz", adult=False)
    assert not refusal.is_refused("quartz", adult=True)
