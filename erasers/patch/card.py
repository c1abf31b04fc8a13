"""The model card of a patch: what it is, what it was measured to do, and what it cannot do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from erasers import worlds
from erasers.asks import SHOWS
from erasers.files.hub import MODEL_NAME
from erasers.markdown import markdown_text
from erasers.models.model_pipeline import COMPONENT

_MAX_ROWS = 50
_LIMITS = (
    "Erasing is not deleting. Whoever holds the weights can undo it: by taking the patch off, by fine-tuning, or with "
    "a prompt trained against the model.",
    "It removes what a prompt asks for, not what the model draws unasked.",
    "Neighbours of the concept and unrelated ones can suffer: see those rows of the scores, and try your own prompts.",
    "It fits the weights it was fitted on, and is refused by others.",
)
_BAKED = "Its edits are weights: `erasers` can write them into a plain diffusers folder."
_SAVED = "Its edits are weights: the model's own `save_pretrained` has them, and loads without `erasers`."
_HOOKED = (
    "Part of it runs during generation and is not in the checkpoint: weights saved without the patch are not erased."
)
_MODEL_USAGE = """\
```python
import erasers

# The model and its processor as transformers loads them, and the file of this repository.
erasers.Patch.load("patch.safetensors").apply(erasers.ModelPipeline(model, processor))
```"""


@dataclass(frozen=True)
class Facts:
    """What a card says of a patch.

    Args:
        meta: Its metadata.
        weights: How many parameters it edits.
        hooks: How many hooks run during generation.
        nbytes: Bytes of its tensors.
    """

    meta: Mapping[str, Any]
    weights: int
    hooks: int
    nbytes: int


def model_card(
    facts: Facts,
    *,
    repo_id: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    summary: Mapping[str, Any] | None = None,
    picture: str | None = None,
) -> str:
    """The card of a patch as Markdown with YAML front matter. Text out of the patch or the report is escaped.

    Args:
        facts: The patch.
        repo_id: Where it will be, for the lines on how to use it.
        base_model: Hub id of the model it was fitted on; taken from the summary when None.
        license: Identifier of a licence, e.g. `apache-2.0`.
        summary: Content of the `summary.json` of a report.
        picture: Name of the before/after picture that lies beside the card.

    Raises:
        ValueError: A base model that is no Hub id.
    """
    if base_model is not None and not MODEL_NAME.fullmatch(base_model):
        raise ValueError(f"expected the base model as a Hub id user/model, got {base_model!r}")
    reported = str((summary or {}).get("model", ""))
    base = base_model or (reported if MODEL_NAME.fullmatch(reported) else None)
    names = ", ".join(markdown_text(concept.get("name")) for concept in facts.meta["concepts"][:_MAX_ROWS])
    method = markdown_text(facts.meta["method"])
    of_model = all(name.partition(".")[0] == COMPONENT for name in facts.meta["base"])
    kind, weights = ("model of transformers", _SAVED) if of_model else ("diffusion model", _BAKED)
    sections = [
        _front_matter(base, license, "transformers" if of_model else "diffusers"),
        f"# {names} erased\n\nA patch for a {kind}, made with `erasers` by the method {method}.",
        _facts(facts, base, reported),
        "## Concepts\n\n" + _concepts(facts.meta["concepts"]),
        "## Scores\n\n" + _scores(summary),
        *([f"![Pictures before and after]({picture})"] if picture else []),
        "## Use\n\n" + (_MODEL_USAGE if of_model else _usage(repo_id, base)),
        "## Limits\n\n" + "\n".join(f"* {line}" for line in (*_LIMITS, _HOOKED if facts.hooks else weights)),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(base: str | None, license: str | None, library: str) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(library_name="erasers", tags=[library, "concept-erasure"], base_model=base, license=license)
    return f"---\n{data.to_yaml()}\n---"


def _facts(facts: Facts, base: str | None, reported: str) -> str:
    meta = facts.meta
    options = ", ".join(f"{key}={value}" for key, value in meta["config"].items())
    model = base or (f"`{reported}`, the model in the package" if reported in worlds.list() else "not named")
    dtype = markdown_text(meta.get("base_dtype", "an unknown type"))
    rows = {
        "method": markdown_text(meta["method"]),
        "options": markdown_text(options or "none", 400),
        "base": f"{model}; {len(meta['base'])} weights in {dtype}, known by their fingerprints",
        "edited weights": str(facts.weights),
        "hooks": f"{facts.hooks}, which run during generation" if facts.hooks else "none",
        "size": f"{facts.nbytes:,} bytes",
        "made with": f"erasers {markdown_text(meta.get('library', 'of unknown version'))}",
    }
    return _table(("", ""), list(rows.items()))


def _concepts(concepts: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            markdown_text(concept.get("name")),
            markdown_text(concept.get("anchor") or "nothing in particular"),
            _listed(concept.get("aliases")),
            str(_count(concept.get("preserve")) + _count(concept.get("captions"))),
        )
        for concept in concepts[:_MAX_ROWS]
    ]
    more = f"\n\nand {len(concepts) - _MAX_ROWS} more." if len(concepts) > _MAX_ROWS else ""
    return _table(("erased", "becomes", "also as", "texts preserved"), rows) + more


def _scores(summary: Mapping[str, Any] | None) -> str:
    splits = (summary or {}).get("splits")
    rows = [
        (split, shows, str(pair["after"]["n"]), _score(pair["before"]), _score(pair["after"]))
        for split, shows in SHOWS.items()
        if (pair := _pair(splits, split)) is not None
    ]
    if not rows:
        return "None: no judge has scored this patch."
    head = ("prompts", "pictures that show", "n", "before, %", "after, %")
    note = summary.get("note") if summary else None
    return (
        _table(head, rows)
        + f"\n\nIn brackets the 95 % interval.{_judged(summary)}"
        + (f" Note: {markdown_text(note, 400)}" if note else "")
    )


def _judged(summary: Mapping[str, Any] | None) -> str:
    """Who judged, where the report says so."""
    judges = (summary or {}).get("judges")
    names = [judge.get("name") for judge in judges if isinstance(judge, Mapping)] if isinstance(judges, list) else []
    return f" Judged by {markdown_text(', '.join(map(str, names)))}." if names else ""


def _pair(splits: Any, split: str) -> Mapping[str, Any] | None:
    """Scores before and after, when both are there in full; what is missing stays missing."""
    pair = splits.get(split) if isinstance(splits, Mapping) else None
    if not isinstance(pair, Mapping):
        return None
    numbers = [
        pair[side].get(key) if isinstance(pair.get(side), Mapping) else None
        for side in ("before", "after")
        for key in ("value", "low", "high", "n")
    ]
    return pair if all(isinstance(number, (int, float)) for number in numbers) else None


def _score(score: Mapping[str, float]) -> str:
    return f"{100 * score['value']:.1f} ({100 * score['low']:.1f} to {100 * score['high']:.1f})"


def _usage(repo_id: str | None, base: str | None) -> str:
    model, patch = base or "PATH OR ID OF THE BASE MODEL", repo_id or "patch.safetensors"
    return (
        "```python\nimport erasers\n\n"
        f'pipe = erasers.ErasedPipeline.from_pretrained("{model}", patches=["{patch}"])\n'
        'image = pipe("a prompt").images[0]\n```'
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _listed(value: Any) -> str:
    return markdown_text(", ".join(map(str, value))) if isinstance(value, list) else str(_count(value) or "")


def _count(value: Any) -> int:
    """How many texts there were: they are listed, or only counted, or absent."""
    if isinstance(value, Mapping):
        return value["count"] if isinstance(value.get("count"), int) else 0
    return len(value) if isinstance(value, list) else 0
