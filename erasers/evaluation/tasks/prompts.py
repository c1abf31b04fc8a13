"""The prompts that a task file names: templates with words, and rows of files, with what the judge must see."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from erasers.asks import ERASED_SPLITS, KEPT_SPLITS, SPLITS, UTILITY, Ask, PlainPrompt
from erasers.concept import Concept, names
from erasers.evaluation.checks import checked, mapping, texts
from erasers.evaluation.refusal.refusal import is_refused, names_minors, refuse_minors
from erasers.evaluation.tasks.files import Cells, Source, parse_source, read_rows
from erasers.judges import Judge

ALL_SPLITS = (*SPLITS, UTILITY)
_TESTS = ("not", "above", "below")
_PLACE = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of one split: templates with words, or rows of a source.

    Args:
        wants: Property -> value that the judge must see; `{word}` and `{concept}` stand for the word and the concept.
        templates: Texts with one `{}` each, the place of the word.
        words: For all concepts, or concept -> its own; without any, the concept's name. Words come in turn, then
            templates, and every prompt has the next seed. In the splits of what is kept, erased words are left out.
        source: Name of the file whose rows these are.
        where: Column -> the text that a row must have there, in any case; or `{not: text}`, `{above: number}`,
            `{below: number}`. `{concept}` stands for the concept, and any of its aliases will do.
    """

    wants: Mapping[str, str]
    templates: tuple[str, ...] = ()
    words: tuple[str, ...] | Mapping[str, tuple[str, ...]] = ()
    source: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What was given, as plain values."""
        words: Any = self.words
        plain = {key: list(spelled) for key, spelled in words.items()} if isinstance(words, Mapping) else list(words)
        values: dict[str, Any] = {"wants": dict(self.wants), "templates": list(self.templates), "words": plain}
        values |= {"source": self.source, "where": dict(self.where)}
        return {key: value for key, value in values.items() if value or key == "wants"}


@dataclass(frozen=True)
class Tally:
    """Rows of one split and concept: those that will do, and why others were left out."""

    asks: tuple[PlainPrompt, ...]
    left_out: Mapping[str, int]


def parse_sources(value: Any) -> dict[str, Source]:
    """Name -> file, from a task file.

    Raises:
        ValueError: Names the key, what it takes and what it got.
    """
    return {name: parse_source(f"sources.{name}", source) for name, source in mapping("sources", value).items()}


def parse_prompts(value: Any, sources: Mapping[str, Source], concepts: Sequence[str]) -> dict[str, Prompts]:
    """Split -> prompts, from a task file.

    Args:
        value: The content of the key `prompts`.
        sources: The task's.
        concepts: All concepts of its cases.

    Raises:
        ValueError: Names the key, what it takes and what it got.
    """
    given = mapping("prompts", value, ALL_SPLITS)
    return {split: _prompts(split, given[split], sources, concepts) for split in ALL_SPLITS if split in given}


def prompts_of(
    prompts: Mapping[str, Prompts],
    sources: Mapping[str, Source],
    concepts: Sequence[Concept],
    samples: Mapping[str, int],
    *,
    adult: bool = False,
) -> dict[str, dict[str, list[Ask]]]:
    """Concept -> split -> prompts, of a case whose concepts are erased together.

    Raises:
        ValueError: A file that was not located or has other columns, or a split in which no row will do.
    """
    table: dict[str, dict[str, list[Ask]]] = {}
    for concept in concepts:
        table[concept.name] = {
            split: list(tally(split, wanted, sources, concept, concepts, samples[split], adult=adult).asks)
            for split, wanted in prompts.items()
            if split in samples
        }
    return table


def tally(
    split: str,
    prompts: Prompts,
    sources: Mapping[str, Source],
    concept: Concept,
    concepts: Sequence[Concept],
    n: int,
    *,
    adult: bool = False,
) -> Tally:
    """The first n prompts of one split and concept, and how many rows of all were left out.

    Left out are rows without text, rows that `refuse_minors` refuses (in a task with sexual content: every row that
    names minors), rows whose text and seed were there before, and in the splits of what is kept, rows that name an
    erased concept. Long prompts stay: the text encoder reads their beginning.

    Raises:
        ValueError: A file that was not located or has other columns, or no row that will do.
    """
    if prompts.source is None:
        return Tally(tuple(_templated(split, prompts, concept, concepts, n, adult)), {})
    rows = _matching(read_rows(prompts.source, sources[prompts.source]), prompts, concept)
    source = sources[prompts.source]
    kept: dict[tuple[str, int | None], None] = {}
    left_out: Counter[str] = Counter()
    for row in rows:
        text, seed = row[source.text].strip(), _seed(row, source)
        why = _why_not(text, split, concepts, adult) or ("repeated" if (text, seed) in kept else "")
        left_out.update([why] if why else [])
        if not why:
            kept[text, seed] = None
    if not kept:
        raise ValueError(f"expected prompts of {concept.name} in {prompts.source} for {split}, got no row that will do")
    wants = _filled(prompts.wants, concept.name, concept.name)
    firsts = enumerate(list(kept)[:n])
    return Tally(tuple(PlainPrompt(text, i if seed is None else seed, wants) for i, (text, seed) in firsts), left_out)


def check_wants(judge: Judge, asks: Sequence[Any]) -> None:
    """Refuse prompts that want what a judge cannot see, before anything is drawn.

    Raises:
        ValueError: Names the split, the property and the value.
    """
    for ask in asks:
        for name, value in ask.wants.items():
            if value not in judge.sees.get(name, ()):
                known = ", ".join(judge.sees.get(name, ())[:40]) or f"only {', '.join(judge.sees)}"
                raise ValueError(f"{ask.split} prompts want {name} {value!r}; {judge.name} knows {known}")


def _prompts(split: str, value: Any, sources: Mapping[str, Source], concepts: Sequence[str]) -> Prompts:
    name = f"prompts.{split}"
    given = dict(mapping(name, value, [field.name for field in fields(Prompts)]))
    wants = {
        key: checked(f"{name}.wants.{key}", word, str, "a text", bool) for key, word in _table(given, name, "wants")
    }
    if not wants and split != UTILITY:
        raise ValueError(f"{name}.wants: expected what the judge must see, as property: value, got nothing")
    if ("source" in given) == ("templates" in given) or {"source", "words"} <= set(given):
        raise ValueError(f"{name}: expected templates, with words if need be, or a source, got {', '.join(given)}")
    if "source" not in given:
        return _with_words(split, given, wants, concepts)
    if given["source"] not in sources:
        raise ValueError(
            f"{name}.source: expected one of {', '.join(sources) or 'the sources'}, got {given['source']!r}"
        )
    where = {column: _test(f"{name}.where.{column}", test) for column, test in _table(given, name, "where")}
    return Prompts(wants=wants, source=given["source"], where=where)


def _with_words(split: str, given: Mapping[str, Any], wants: Mapping[str, str], concepts: Sequence[str]) -> Prompts:
    name = f"prompts.{split}"
    templates, words = texts(f"{name}.templates", given["templates"]), given.get("words", [])
    if "where" in given:
        raise ValueError(f"{name}.where: expected a source, got templates")
    if wrong := [template for template in templates if _PLACE.findall(template) not in ([""], [])]:
        raise ValueError(f"{name}.templates: expected {{}} at most once and no other place, got {wrong[0]!r}")
    if not words and split != "explicit" and any("{}" in template for template in templates):
        raise ValueError(f"{name}.words: expected words for the templates, got none")
    if isinstance(words, Mapping):
        per_concept = mapping(f"{name}.words", words, concepts)
        if lacking := [concept for concept in concepts if concept not in per_concept]:
            raise ValueError(f"{name}.words: expected words for each concept, got none for {lacking[0]}")
        own = {key: texts(f"{name}.words.{key}", listed) for key, listed in per_concept.items()}
        return Prompts(wants=wants, templates=templates, words=own)
    return Prompts(wants=wants, templates=templates, words=texts(f"{name}.words", words) if words else ())


def _table(given: Mapping[str, Any], name: str, key: str) -> Iterator[tuple[str, Any]]:
    yield from mapping(f"{name}.{key}", given.get(key, {})).items()


def _test(name: str, value: Any) -> Any:
    """What a column must have, checked."""
    if isinstance(value, Mapping):
        if len(value) != 1 or not set(value) <= set(_TESTS):
            raise ValueError(f"{name}: expected a text, or one of {', '.join(_TESTS)}, got {dict(value)}")
        for key, bound in value.items():
            checked(name, bound, str if key == "not" else (int, float), "a text" if key == "not" else "a number")
        return dict(value)
    return checked(name, value, str, "a text, or one of " + ", ".join(_TESTS), bool)


def _templated(
    split: str, prompts: Prompts, concept: Concept, concepts: Sequence[Concept], n: int, adult: bool
) -> Iterator[PlainPrompt]:
    words = prompts.words.get(concept.name, ()) if isinstance(prompts.words, Mapping) else prompts.words
    erased = {term.lower() for concept in concepts for term in concept.terms()} if split not in ERASED_SPLITS else ()
    left = [word for word in words or (concept.name,) if word.lower() not in erased]
    if not left:
        raise ValueError(f"expected words for {split} beside what is erased, got none for {concept.name}")
    for seed in range(n):
        word = left[seed % len(left)]
        text = prompts.templates[seed // len(left) % len(prompts.templates)].replace("{}", word)
        if adult and names_minors(text):
            raise ValueError(f"{split}: a prompt of a task with sexual content names minors; this library draws none")
        refuse_minors(text)
        yield PlainPrompt(text, seed, _filled(prompts.wants, word, concept.name))


def _matching(rows: Sequence[Cells], prompts: Prompts, concept: Concept) -> Iterator[Cells]:
    terms = [term.lower() for term in concept.terms()]
    for column in prompts.where:
        if column not in rows[0]:
            raise ValueError(f"expected the column {column} in {prompts.source}, got {', '.join(rows[0])}")
    for row in rows:
        if all(_passes(row.get(column, ""), test, terms) for column, test in prompts.where.items()):
            yield row


def _passes(cell: str, test: Any, terms: Sequence[str]) -> bool:
    if isinstance(test, str):
        return cell.strip().lower() in (terms if test == "{concept}" else [test.lower()])
    [(kind, value)] = test.items()
    if kind == "not":
        return not _passes(cell, value, terms)
    try:
        number = float(cell)
    except ValueError:
        raise ValueError(f"expected a number where a row is chosen by one, got {cell!r}") from None
    return bool(number > value if kind == "above" else number < value)


def _why_not(text: str, split: str, concepts: Sequence[Concept], adult: bool) -> str:
    """Why a row is left out; nothing when it will do."""
    if not text:
        return "empty"
    if is_refused(text, adult=adult):
        return "refused"
    kept = split in (*KEPT_SPLITS, UTILITY)
    return "erased" if kept and any(names(text, term) for concept in concepts for term in concept.terms()) else ""


def _seed(row: Cells, source: Source) -> int | None:
    if source.seed is None:
        return None
    cell = row[source.seed].strip()
    if not cell.isascii() or not cell.isdigit() or int(cell) >= 1 << 63:
        raise ValueError(f"expected a whole number below 2^63 as the seed in {source.seed}, got {cell!r}")
    return int(cell)


def _filled(wants: Mapping[str, str], word: str, concept: str) -> dict[str, str]:
    return {key: value.replace("{word}", word).replace("{concept}", concept) for key, value in wants.items()}
