"""The page of an audit: one file, read from the top, with pictures of what came back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from erasers.evaluation.audit.summary import BLIND, CAME, NOTHING
from erasers.evaluation.page import document, plain
from erasers.evaluation.scores.records import UNEDITED
from erasers.evaluation.scores.results import REFERENCE

SPACES = {
    "text": "words that anybody can type",
    "image": "pictures as prompts",
    "embedding": "embeddings, with the weights at hand",
    "latent": "the noise, with the sampler at hand",
    "weights": "fine-tuning, with the weights at hand",
}
"""What an attacker needs, by what an attack chooses."""
NEVER = (
    "inversion of a picture without any text, and of what text encoders give",
    "fine-tuning on pictures that the model did not draw itself",
    "starting pictures, masks and control pictures that show the concept",
    "other languages, typos and descriptions that no list of this library has",
    "more than the budget: an attack that found nothing in it may find something in ten times as much",
)
"""What no audit here tries."""
_CALM = "Nothing that was tried brought it back more often than its control, and what should stay stays."
_MEANING = (
    "Share of the attacked prompts for which some picture within the budget shows the concept, with its 95 % interval. "
    "The control draws as many pictures without a search: an attack counts where it does better. Again: of its "
    "successes, drawn anew from five other noises."
)
_READING = {CAME: "bad", NOTHING: "good", BLIND: "quiet"}


@dataclass(frozen=True)
class Shown:
    """Pictures on the page.

    Args:
        title: What they show.
        note: How they came to be.
        pictures: (data URI, text under it).
        wrong: Whether they should not be there.
    """

    title: str
    note: str
    pictures: Sequence[tuple[str, str]]
    wrong: bool = False


def audit_page(summary: Mapping[str, Any], shown: Sequence[Shown], *, adult: bool = False) -> str:
    """The page.

    Args:
        summary: Content of `audit.json`.
        shown: Pictures, in the order in which they stand.
        adult: Whether pictures are blurred until asked for.
    """
    body = f"""<a class="skip" href="#tried">To the numbers</a>
<header>
<h1>{plain(summary["title"])}</h1>
{_said(summary["said"])}</header>
<main>
{_tried(summary)}{_splits(summary["splits"])}{"".join(_shown(number, own, adult) for number, own in enumerate(shown))}
{_not_tried(summary["not_tried"])}{_measured(summary["measured"])}</main>
"""
    return document(summary["title"], body, "report")


def _said(lines: Sequence[str]) -> str:
    if not lines:
        return f'<p class="said good">{plain(_CALM)} What was not tried is below.</p>\n'
    items = "".join(f"<li>{plain(line)}</li>" for line in lines)
    return f'<div class="said bad"><h2>Look at this first</h2><ul>{items}</ul></div>\n'


def _tried(summary: Mapping[str, Any]) -> str:
    heads = {"control": "control", UNEDITED: "unedited", REFERENCE: "retrained", "again": "again"}
    there = {key: head for key, head in heads.items() if any(key in own for own in summary["attacks"])}
    names = ["attack", "budget a prompt", "brought back", *there.values(), "reading"]
    rows = [
        [
            f'<b>{plain(own["attack"])}</b> <span class="quiet">{SPACES[own["space"]]}</span>',
            _budget(own["budget"]),
            _share(own.get("edited")),
            *(_share(own.get(key)) for key in there),
            _word(own["reading"], _READING.get(own["reading"], "quiet")),
        ]
        for own in summary["attacks"]
    ]
    table = _table("Attacks", names, rows) if rows else "<p>No attack of this library can be made on this model.</p>"
    return f"""<section id="tried" aria-labelledby="tried-title"><h2 id="tried-title">What was tried</h2>
<p class="quiet">{plain(_MEANING)}</p>
{table}</section>
"""


def _table(label: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of markup, whose roles are written out, for on narrow screens its rows are laid out as cards."""
    head = "".join(f'<th scope="col" role="columnheader">{name}</th>' for name in names)
    body = ""
    for first, *others in rows:
        cells = "".join(
            f'<td role="cell" data-label="{name}">{cell}</td>' for name, cell in zip(names[1:], others, strict=True)
        )
        body += f'<tr role="row"><th scope="row" role="rowheader">{first}</th>{cells}</tr>\n'
    return (
        f'<table class="numbers" role="table" aria-label="{plain(label)}"><thead role="rowgroup"><tr role="row">{head}'
        f'</tr></thead>\n<tbody role="rowgroup">{body}</tbody></table>'
    )


def _word(text: str, kind: str) -> str:
    return f'<span class="{kind}">{plain(text)}</span>'


def _budget(budget: Mapping[str, int]) -> str:
    words = {"images": "pictures", "gradients": "gradients", "encodes": "texts read"}
    return ", ".join(f"{budget[key]:,} {word}" for key, word in words.items() if budget[key])


def _share(share: Mapping[str, Any] | None) -> str:
    if share is None:
        return "-"
    value, low, high = (100 * share[key] for key in ("value", "low", "high"))
    return f"<b>{value:.0f} %</b> <small>{low:.0f} to {high:.0f}, n = {share['n']}</small>"


def _splits(splits: Mapping[str, Any]) -> str:
    """What prompts without any attack show."""
    columns = ["before", "after", *(["retrained"] if any("retrained" in own for own in splits.values()) else [])]
    rows = [
        [
            split,
            *(f"<b>{own[key]}</b> <small>of {own['n']}</small>" for key in columns),
            _word(own["reading"], "bad" if "warning" in own else "good"),
        ]
        for split, own in splits.items()
    ]
    note = "Pictures that show the concept (explicit, synonym), or what was asked for (neighbour, unrelated)."
    return f"""<section aria-labelledby="splits-title"><h2 id="splits-title">Without any attack</h2>
<p class="quiet">{note}</p>
{_table("Pictures before and after", ["prompts", *columns, "reading"], rows)}</section>
"""


def _shown(number: int, own: Shown, adult: bool) -> str:
    small = ' class="small"'
    cards = "".join(
        f'<li class="card{" wrong" if own.wrong else ""}"><img{small if uri.startswith("data:image/png") else ""} '
        f'width="100%" alt="{plain(text)}" src="{uri}"><p>{plain(text)}</p></li>\n'
        for uri, text in own.pictures
    )
    sharp = (
        f'<input class="sharp" type="checkbox" id="sharp-{number}"> <label for="sharp-{number}">These pictures may be '
        "unsafe: show them sharp</label>\n"
        if adult
        else ""
    )
    return f"""<section class="split{" adult" if adult else ""}" aria-labelledby="shown-{number}">
<h2 id="shown-{number}">{plain(own.title)}</h2><p class="quiet">{plain(own.note)}</p>
{sharp}<ul class="cards">{cards}</ul></section>
"""


def _not_tried(left_out: Mapping[str, str]) -> str:
    rows = "".join(f"<li><b>{plain(name)}</b>: {plain(why)}</li>" for name, why in left_out.items())
    rows += "".join(f"<li>{plain(line)}</li>" for line in NEVER)
    return f"<section><h2>What was not tried</h2><ul>{rows}</ul></section>\n"


def _measured(rows: Mapping[str, object]) -> str:
    listed = "".join(f"<dt>{plain(name)}</dt><dd>{plain(value)}</dd>" for name, value in rows.items())
    return f'<section><h2>How it was measured</h2><dl class="facts">{listed}</dl></section>\n'
