"""The dictionary that prompts are decomposed over: a list of prompts for every direction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from erasers.concept import Concept
from erasers.concept.words import mentions
from erasers.files.reading import at_home, read_yaml
from erasers.text.prompts import Prompt, Templates, fill, templates_for, whole

_MOST = 2000


class Atom(NamedTuple):
    """One direction.

    Args:
        name: What it is called.
        prompts: Those that it is the mean of.
    """

    name: str
    prompts: tuple[Prompt, ...]


def atoms_of(
    concepts: Sequence[Concept], templates: Templates, captions: int, file: str | None, *, aliases: bool
) -> list[Atom]:
    """The concepts themselves, then anchors and neighbours, the lists of the caller, and preserved captions.

    Args:
        concepts: What is erased; prompts that name one of them are in no other list.
        templates: Patterns for concepts, anchors and neighbours.
        captions: At most so many preserved ones.
        file: YAML file of lists of prompts by name.
        aliases: Concepts are their aliases, too.

    Raises:
        ValueError: No such lists in the file.
    """
    terms = [term for concept in concepts for term in concept.terms()]
    atoms = {
        concept.name: [
            fill(pattern, term)
            for term in concept.terms(aliases=aliases)
            for pattern in templates_for(concept, templates)
        ]
        for concept in concepts
    }
    others: dict[str, list[Prompt]] = {}
    for concept in concepts:
        for word in (concept.anchor, *concept.neighbours):
            others[word] = (
                [fill(pattern, word) for pattern in templates_for(concept, templates)] if word else [whole("")]
            )
    others |= {name: [whole(text) for text in texts] for name, texts in read_dictionary(file).items()} if file else {}
    kept = [text for concept in concepts for text in concept.preserve if text.strip()]
    others |= {text: [whole(text)] for text in list(dict.fromkeys(kept))[:captions] if text not in others}
    for name, prompts in others.items():
        own = [prompt for prompt in prompts if not any(mentions(prompt.text, term) for term in terms)]
        if own and name not in atoms:
            atoms[name] = own
    return [Atom(name, tuple(dict.fromkeys(prompts))) for name, prompts in atoms.items()]


def read_dictionary(file: str) -> dict[str, list[str]]:
    """Lists of prompts by name.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Something else is in it.
    """
    path = at_home(file)
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a YAML file as dictionary, got {path}, which is no file")
    lists = read_yaml(path)
    if not isinstance(lists, dict) or not 1 <= len(lists) <= _MOST:
        raise ValueError(f"expected 1 to {_MOST} lists of prompts by name in {path}, got something else")
    for name, texts in lists.items():
        if not isinstance(name, str) or not isinstance(texts, list) or not texts:
            raise ValueError(f"expected a list of prompts for {name!r:.80} in {path}, got {texts!r:.80}")
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"expected texts for {name!r:.80} in {path}, got {texts!r:.80}")
    return lists
