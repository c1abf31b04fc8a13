"""What closed forms on text maps share: which prompts they read, and one transform for each group of ports."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from erasers.closed_form.pairs import check_rows, stack_pairs
from erasers.closed_form.ports import port_hashes
from erasers.closed_form.preserved import Preserved, preserved_rows
from erasers.concept import Concept, names
from erasers.eraser import Eraser
from erasers.models.feeding import warn_of_missed_ports
from erasers.models.ports import KINDS, Group, Kind, find_family, port_groups
from erasers.models.readers import text_readers
from erasers.options import require_least
from erasers.patch import Patch
from erasers.patch.build import transform_patch
from erasers.text.encoding import Reader
from erasers.text.prompts import Prompt, Templates, fill, require_templates, templates_for, whole
from erasers.text.states import Encoded, Rows

BARE = ("{}",)

# The published code keeps its model intact up to about ten concepts with a hundred preserved ones.
_MANY_ERASED = 10
_FEW_PRESERVED = 100


@dataclass(frozen=True, kw_only=True)
class TextMaps(Eraser):
    """A closed form that reads the rows of concepts, of their anchors and of what is preserved, and edits text ports.

    Args:
        rows: Erased rows of each prompt: the last subject token, it and all that follow, or all.
        preserve_rows: Preserved rows of each preserved prompt.
        templates: Patterns with one `{}` for the concept and its anchor; "auto" takes those of the concept's kind.
        preserve_templates: The same for preserved concepts.
        aliases: Erase the concept's aliases too.
        neighbours: Preserve the concept's neighbours too; `preserve` always counts.
        preserve_empty: Preserve the empty prompt.
        empty_anchor: What an empty anchor becomes in a template: the empty prompt (`bare`), or the template without the
            concept and the `[...]` around it (`template`).
        ports: Which ports are edited. `text` reads each token of the prompt unmixed: cross-attention keys and values,
            or the embedder before joint attention. `pooled` reads one vector a prompt beside them (SDXL, SD3, FLUX.1,
            Lumina-Next). `joint` are the keys and values that joint blocks have for text: a heuristic, since they read
            states that earlier blocks have mixed. "auto" is `text`, and `pooled` where there is no cross-attention.
        max_sequence_length: Tokens that a prompt is padded to, where pictures are drawn with another number than the
            pipeline's default (256 for FLUX.1 schnell); CLIP encoders take no such number.
        clip_skip: Last layers of CLIP that are left out, where pictures are drawn with the pipeline's `clip_skip`.
        cache: Keep encoded preserve sets (and Gram matrices) on disk.
    """

    most_kept: ClassVar[float] = 0.5
    """Up to this share of d preserved rows are kept themselves, more as their Gram matrix."""

    rows: Rows = "last"
    preserve_rows: Rows = "all"
    templates: Templates = BARE
    preserve_templates: Templates = BARE
    aliases: bool = True
    neighbours: bool = True
    preserve_empty: bool = True
    empty_anchor: Literal["bare", "template"] = "template"
    ports: tuple[Kind, ...] | Literal["auto"] = "auto"
    max_sequence_length: int | None = None
    clip_skip: int | None = None
    cache: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ports:
            raise ValueError(f"expected ports as auto or some of {', '.join(KINDS)}, got none")
        require_least(self, max_sequence_length=1, clip_skip=0)
        for field in ("templates", "preserve_templates"):
            require_templates(field, getattr(self, field))

    def _fit(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, progress: bool) -> Patch:
        """Solve for all concepts at once; nothing takes long enough to show progress."""
        groups = self.groups(pipe)
        hashes = port_hashes(pipe, groups)
        tasks = self.gather(pipe, concepts, groups, generator)
        edits = [(task.group, *self.edit(task, hashes)) for task in tasks]
        return transform_patch(self.name, self.config(), concepts, edits, hashes, text_readers(pipe))

    def groups(self, pipe: Any) -> list[Group]:
        """The ports that are edited, by what they read; warns of text that enters beside them."""
        groups = port_groups(pipe, self.ports)
        if unedited := find_family(pipe)[0].unedited:
            warnings.warn(f"text also enters {unedited}, which stays unedited; look at the pictures", stacklevel=4)
        if self.ports != "auto":
            warn_of_missed_ports(pipe, self.ports)
        return groups

    def gather(
        self, pipe: Any, concepts: Sequence[Concept], groups: Sequence[Group], generator: torch.Generator | None = None
    ) -> list[Task]:
        """Encode every prompt once; what each group of ports reads of them. `generator` is for those that draw."""
        pooled = any(group.kind == "pooled" for group in groups)
        reader = Reader(pipe, self.rows_to_encode(), pooled, self.max_sequence_length, self.clip_skip)
        encoded = reader.encode(prompt for pair in self.pairs_to_encode(concepts) for prompt in pair)
        pairs = self.prompt_pairs(concepts, self.templates)
        rows = [stack_pairs(group, encoded, pairs, self.rows) for group in groups]
        for group, (erase, anchor) in zip(groups, rows, strict=True):
            check_rows(group, erase, anchor)
        kept = self.preserved_prompts(concepts)
        keeper = replace(reader, policy=self.preserve_rows)
        widths = [erase.shape[1] for erase, _ in rows]
        preserved = preserved_rows(keeper, groups, kept, widths, cache=self.cache, most=self.most_kept)
        return [
            Task(group, concepts, encoded, erase, anchor, preserve)
            for group, (erase, anchor), preserve in zip(groups, rows, preserved, strict=True)
        ]

    def edit(self, task: Task, hashes: Mapping[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
        """A `[r, d]` and B `[d, r]` of the edit of one group of ports; `hashes` are the fingerprints of its weights."""
        raise NotImplementedError(f"expected {type(self).__name__} with an edit of its own, got none")

    def rows_to_encode(self) -> Rows:
        """The policy that encodes enough for all that this method reads."""
        return self.rows

    def pairs_to_encode(self, concepts: Sequence[Concept]) -> list[tuple[Prompt, Prompt]]:
        """Every (erased prompt, anchor prompt) that this method reads."""
        return self.prompt_pairs(concepts, self.templates)

    def prompt_pairs(self, concepts: Sequence[Concept], templates: Templates) -> list[tuple[Prompt, Prompt]]:
        """(erased prompt, anchor prompt) for every name, alias and template."""
        pairs = []
        for concept in concepts:
            bare = not concept.anchor.strip() and self.empty_anchor == "bare"
            for term in concept.terms(aliases=self.aliases):
                for template in templates_for(concept, templates):
                    pairs.append((fill(template, term), whole("") if bare else fill(template, concept.anchor)))
        return list(dict.fromkeys(pairs))

    def neighbour_pairs(self, concepts: Sequence[Concept]) -> list[tuple[Prompt, Prompt]]:
        """The neighbours of concepts as prompts, each with itself, for methods that read their rows apart."""
        prompts = [
            fill(template, text)
            for concept in concepts
            for text in concept.neighbours
            for template in templates_for(concept, self.templates)
        ]
        return [(prompt, prompt) for prompt in dict.fromkeys(prompts)]

    def preserved_prompts(self, concepts: Sequence[Concept]) -> list[Prompt]:
        """Every preserved prompt once, without those that name another of the erased concepts."""
        erased = {term.lower() for concept in concepts for term in concept.terms(aliases=self.aliases)}
        prompts = [whole("")] if self.preserve_empty else []
        for concept in concepts:
            others = erased - {term.lower() for term in concept.terms(aliases=self.aliases)}
            kept = (*concept.preserve, *(concept.neighbours if self.neighbours else ()))
            kept = tuple(text for text in kept if not any(names(text, other) for other in others))
            for template in templates_for(concept, self.preserve_templates):
                prompts += [fill(template, text) for text in kept]
        prompts = list(dict.fromkeys(prompts))
        count = sum(len(concept.terms(aliases=False)) for concept in concepts)
        if count > _MANY_ERASED and len(prompts) <= _FEW_PRESERVED:
            warnings.warn(
                f"erasing {count} concepts while preserving {len(prompts)} prompts: pictures are known to collapse "
                f"beyond {_MANY_ERASED} concepts with {_FEW_PRESERVED} preserved; preserve more, or erase fewer",
                UserWarning,
                stacklevel=5,
            )
        return prompts


@dataclass(frozen=True)
class Task:
    """All that was read from the pipeline for one group of ports.

    Args:
        group: The ports.
        concepts: What is erased.
        encoded: States of every erased and anchor prompt.
        erase: C `[n, d]`.
        anchor: G `[n, d]`.
        preserve: P.
    """

    group: Group
    concepts: Sequence[Concept]
    encoded: Mapping[Prompt, Encoded]
    erase: torch.Tensor
    anchor: torch.Tensor
    preserve: Preserved
