"""The report as one HTML page that needs nothing else: no request, no font, no library."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from erasers.asks import ERASED_SPLITS, SHOWS
from erasers.evaluation.grid import Cell
from erasers.evaluation.page import document, plain

SPLIT_TEXTS: Mapping[str, str] = {
    "explicit": "name the concept",
    "synonym": "call it by another name, which the method was not given",
    "neighbour": "ask for what looks most like it",
    "unrelated": "ask for anything else",
}
_LOOK = {
    True: "Before, the concept is there. After, it should be gone, and the picture should still be a good one.",
    False: "After, what the prompt asks for should still be there, nearly as before.",
}
_HOW = "Both pictures of a pair start from the same noise, so whatever differs is the patch."
_SHOWN = "The first prompts of each split are shown, then those in which the judge says that something went wrong."
_SHARES = (
    "Share of the pictures, with its 95 % interval (Wilson). A split without prompts or without a judge is absent: "
    "missing is not zero."
)
_HAZY = "These prompts ask for unsafe content: show the pictures sharp"
_CALM = "Nothing stands out: what should go fell, and what should stay stays. Look at the pictures all the same."
_BLIND = "No judge has looked at these pictures, so there are no numbers: compare them yourself, pair by pair."
_LIMITS = (
    "Erasing is not deleting: whoever holds the weights can take the patch off or train the concept back.",
    "A judge is a network and errs; on pictures of edited models it may err more often.",
    "These prompts are a sample. Try your own with erase generate.",
)
_LONGEST = 300


@dataclass(frozen=True)
class Card:
    """One prompt with its pictures: `wrong` where the patch failed, `adult` where they are blurred until asked for."""

    concept: str
    split: str
    text: str
    seed: int
    before: Cell[str]
    after: Cell[str]
    wrong: bool = False
    adult: bool = False


def report_page(summary: Mapping[str, Any], cards: Sequence[Card], facts: Mapping[str, str]) -> str:
    """The page.

    Args:
        summary: Content of `summary.json`.
        cards: In the order of their sections.
        facts: About the patch, in words.
    """
    title = f"{summary['title']}"
    body = f"""<a class="skip" href="#pictures">To the pictures</a>
<header>
<h1>{plain(title)}</h1>
{_said(summary)}</header>
<main>
{_numbers(summary)}<section id="pictures" aria-labelledby="pictures-title">
<h2 id="pictures-title">Pictures</h2>
<p class="quiet">{plain(_HOW)}{plain(f" {_SHOWN}" if summary["splits"] else "")}</p>
<fieldset class="view"><legend>Show pairs</legend>
<label><input type="radio" name="view" value="slide" checked> under a slider</label>
<label><input type="radio" name="view" value="aside"> side by side</label>
<p class="quiet">Drag across a picture, or take the arrow keys: left of the line is before, right of it after.</p>
</fieldset>
{_sections(cards)}</section>
{_patch(summary, facts)}{_measured(summary)}{_next(summary)}<section><h2>What this report cannot say</h2>
<ul>{"".join(f"<li>{plain(line)}</li>" for line in _LIMITS)}</ul></section>
</main>
"""
    return document(title, body, "report")


def _said(summary: Mapping[str, Any]) -> str:
    """The first thing to read: what deserves a look, or that nothing does."""
    warned = summary.get("warnings", [])
    if warned:
        lines = "".join(f"<li>{plain(line)}</li>" for line in warned)
        return f'<div class="said bad"><h2>Look at this first</h2><ul>{lines}</ul></div>\n'
    if summary["splits"]:
        return f'<p class="said good">{plain(_CALM)}</p>\n'
    note = f"<br><small>{plain(summary['note'])}</small>" if summary.get("note") else ""
    return f'<p class="said">{plain(_BLIND)}{note}</p>\n'


def _numbers(summary: Mapping[str, Any]) -> str:
    if not summary["splits"]:
        return ""
    alone = "".join(
        f"<h3>{plain(name)}</h3>{_table(splits, {}, f'Shares of {name}')}"
        for name, splits in summary["concepts"].items()
    )
    each = f"<details><summary>By concept</summary>{alone}</details>\n" if len(summary["concepts"]) > 1 else ""
    return f"""<section aria-labelledby="numbers-title"><h2 id="numbers-title">Numbers</h2>
<p class="quiet">{plain(_SHARES)}</p>
{_table(summary["splits"], summary.get("readings", {}), "Shares before and after")}{each}</section>
"""


def _table(splits: Mapping[str, Any], readings: Mapping[str, Mapping[str, str]], label: str) -> str:
    """Rows whose roles are written out, for on narrow screens they are laid out as cards."""
    heads = ["prompts that", "pictures that show", "before", "after", *(["reading"] if readings else [])]
    head = "".join(f'<th scope="col" role="columnheader">{name}</th>' for name in heads)
    rows = "".join(_split_row(split, pair, readings.get(split)) for split, pair in splits.items())
    return (
        f'<table class="numbers" role="table" aria-label="{plain(label)}"><thead role="rowgroup"><tr role="row">{head}'
        f'</tr></thead>\n<tbody role="rowgroup">{rows}</tbody></table>\n'
    )


def _split_row(split: str, pair: Mapping[str, Any], reading: Mapping[str, str] | None) -> str:
    erased = split in ERASED_SPLITS
    prompts, shows = SPLIT_TEXTS[split], SHOWS[split]
    should = "should fall" if erased else "should stay"
    cells = [
        f'<th scope="row" role="rowheader"><b>{split}</b> <span class="quiet">{prompts}</span></th>',
        f'<td role="cell" data-label="pictures that show">{shows} <small>{should}</small></td>',
        *(
            f'<td role="cell" data-label="{side}" class="{side}-bar">{_share(pair[side])}</td>'
            for side in ("before", "after")
        ),
    ]
    if reading:
        kind = "bad" if reading["warning"] else "good"
        cells.append(f'<td role="cell" data-label="reading" class="{kind}">{plain(reading["word"])}</td>')
    return f'<tr role="row">{"".join(cells)}</tr>\n'


def _share(score: Mapping[str, Any]) -> str:
    """A share with its interval, in words and drawn."""
    value, low, high = (100 * score[key] for key in ("value", "low", "high"))
    unscored = f", {score['unscored']} not scored" if score.get("unscored") else ""
    words = f"{value:.0f} %, 95 % interval {low:.0f} to {high:.0f}, of {score['n']} pictures{unscored}"
    return (
        f"<b>{value:.0f} %</b> <small>{low:.0f} to {high:.0f}, n = {score['n']}{unscored}</small>"
        f'<svg role="img" viewBox="0 0 100 12" preserveAspectRatio="none"><title>{words}</title>'
        '<rect class="track" x="0" y="5" width="100" height="2"/>'
        f'<rect class="band" x="{low:.1f}" y="2" width="{max(high - low, 0.5):.1f}" height="8"/>'
        f'<rect class="tick" x="{min(max(value - 1, 0), 98):.1f}" y="0" width="2" height="12"/></svg>'
    )


def _sections(cards: Sequence[Card]) -> str:
    groups = groupby(cards, key=lambda card: (card.concept, card.split))
    return "".join(_section(k, *key, list(cards)) for k, (key, cards) in enumerate(groups))


def _section(index: int, concept: str, split: str, cards: Sequence[Card]) -> str:
    erased = split in ERASED_SPLITS
    title = f"{split}: {concept} should go" if erased else f"{split}: should stay while {concept} goes"
    adult = any(card.adult for card in cards)
    hazy = (
        f'<input class="sharp" type="checkbox" id="sharp-{index}"> <label for="sharp-{index}">{_HAZY}</label>\n'
        if adult
        else ""
    )
    items = "".join(map(_card, cards))
    return f"""<section class="split{" adult" if adult else ""}" aria-labelledby="split-{index}">
<h3 id="split-{index}">{plain(title)}</h3>
<p class="quiet">{plain(_LOOK[erased])}</p>
{hazy}<ul class="cards">{items}</ul></section>
"""


def _card(card: Card) -> str:
    text = card.text if len(card.text) <= _LONGEST else card.text[: _LONGEST - 3] + "..."
    shots = "".join(_shot(side, shot, text) for side, shot in (("before", card.before), ("after", card.after)))
    label = f"Line between before and after: {text}"
    return (
        f'<li class="card{" wrong" if card.wrong else ""}"><div class="pair">{shots}<input class="slider" type="range" '
        f'min="0" max="100" value="50" aria-label="{plain(label)}"></div>'
        f"<p><q>{plain(text)}</q> <small>seed {card.seed}</small></p>{_verdicts(card)}</li>\n"
    )


def _shot(side: str, shot: Cell[str], text: str) -> str:
    small = ' class="small"' if shot.image.startswith("data:image/png") else ""
    what = plain(f"{side}: {text}" + (f" ({shot.note})" if shot.note else ""))
    image = f'<img{small} alt="{what}" src="{shot.image}">'
    return f'<figure class="side {side}">{image}<figcaption>{side}</figcaption></figure>'


def _verdicts(card: Card) -> str:
    """What the judge says of both pictures; nothing without one."""
    if not card.before.note and not card.after.note:
        return ""
    parts = []
    for shot in (card.before, card.after):
        mark, kind = {True: ("✓ ", "good"), False: ("✗ ", "bad"), None: ("", "quiet")}[shot.good]
        parts.append(f'<span class="{kind}">{mark}{plain(shot.note or "not judged")}</span>')
    return f'<p class="verdict">{" → ".join(parts)}</p>'


def _patch(summary: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    return f'<section><h2>The patch</h2><dl class="facts">{_listed(facts)}</dl></section>\n'


def _measured(summary: Mapping[str, Any]) -> str:
    """Judges, sampler, versions, and what else has to be known."""
    judges = {f"judge of {', '.join(judge['splits'])}": _judge(judge) for judge in summary.get("judges", ())}
    given = {key: f"{summary[key]:g}" for key in ("steps", "guidance") if key in summary}
    sampler = summary.get("drawn") or ", ".join(f"{key} {value}" for key, value in given.items())
    sampler = sampler or "the pipeline's own settings"
    rows = judges | {"model": summary.get("model", "not named"), "sampler": sampler}
    rows |= {"prompts a split": f"up to {summary['samples']}, with seeds as on the cards"}
    rows |= {"device": summary["device"], "versions": ", ".join(f"{k} {v}" for k, v in summary["versions"].items())}
    rows |= {"note": summary["note"]} if summary.get("note") else {}
    return f'<section><h2>How it was measured</h2><dl class="facts">{_listed(rows)}</dl></section>\n'


def _judge(judge: Mapping[str, Any]) -> str:
    """A judge and the worst that has been measured of it, if anything has."""
    known = f"{judge['name']}, fingerprint {judge['fingerprint'][:12]}"
    errors = judge.get("errors", {}).values()
    if not errors:
        return f"{known}; how often it errs has not been measured"
    worst = [
        min((error[name] for error in errors if name in error), key=lambda share: share["value"], default=None)
        for name in ("sensitivity", "specificity")
    ]
    said = [
        f"{what} {100 * share['value']:.1f} % ({100 * share['low']:.1f} to {100 * share['high']:.1f})"
        for what, share in zip(("sees what is there in", "and nothing where nothing is in"), worst, strict=True)
        if share
    ]
    return f"{known}; {', '.join(said)} of pictures of known content (the lowest of {len(errors)} kinds of prompts)"


def _next(summary: Mapping[str, Any]) -> str:
    """Commands that go on from here."""
    if "patch_file" not in summary or "model" not in summary:
        return ""
    patch, model = shlex.quote(summary["patch_file"]), shlex.quote(summary["model"])
    commands = {
        "try a prompt of your own, before and after": f"erase generate 'a prompt' --model {model} --patch {patch}",
        "write the erased model as a diffusers folder": f"erase apply {patch} --model {model} --save erased",
        "write the patch as a LoRA": f"erase export {patch} --model {model} --form lora --out lora",
        "see all that is in the patch": f"erase inspect {patch}",
    }
    items = "".join(f"<dt>{plain(what)}</dt><dd><code>{plain(line)}</code></dd>" for what, line in commands.items())
    return f'<section><h2>Go on from here</h2><dl class="commands">{items}</dl></section>\n'


def _listed(rows: Mapping[str, object]) -> str:
    return "".join(f"<dt>{plain(name)}</dt><dd>{plain(value)}</dd>" for name, value in rows.items())
