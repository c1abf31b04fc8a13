"""Concept Lancet: Luo et al., "Concept Lancet: Image Editing with Compositional Representation Transplant", CVPR 2025,
arXiv 2504.02828."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from erasers.closed_form.ports import port_hashes
from erasers.concept import Concept
from erasers.methods.concept_lancet.dictionary import Atom, atoms_of
from erasers.methods.concept_lancet.vectors import Text, texts_of
from erasers.methods.run_time import RunTime
from erasers.models.feeding import warn_of_missed_ports
from erasers.models.ports import Kind, port_groups
from erasers.models.readers import text_readers
from erasers.options import require_least, require_shares
from erasers.patch import Patch
from erasers.patch.build import patch_meta
from erasers.patch.sparse import SparseConcepts, codes
from erasers.text.contexts import contexts, kept_prompts
from erasers.text.encoding import Reader
from erasers.text.prompts import Templates, require_templates, whole
from erasers.text.states import Rows

_PROMPTS_A_BATCH = 32
# The same prompt in another batch, or in single precision, differs in its last digits.
_ROUNDING, _LEAST = 1.001, 1e-3


@dataclass(frozen=True, kw_only=True)
class ConceptLancet(RunTime):
    """Write what a prompt says as a sparse sum of directions of concepts, and set the concept's coefficient to zero.

    With a dictionary D of unit directions d_k, one for each list of prompts, and x a vector of the prompt,

        y = (x - centre) / |x - centre|    w = argmin |y - D'w|^2 / 2 + tau alpha |w|_1 + (1 - tau) alpha |w|^2 / 2
        x -> x - w_k |x - centre| d_k

    so that all other concepts of the prompt, and what the dictionary does not explain, stay. A prompt in which the
    concept has no coefficient above its gate keeps its states bit for bit.

    Differs from the paper's code, which decomposes and has no pipeline: directions are means less a centre, for the
    means themselves point nearly all the same way; a vector is a token's state, so that prompts of any length and
    encoders that do not look back will do ("prompt" is the published one, all states of a prompt behind one another,
    less those of the empty prompt); only positive coefficients leave, and only above what kept prompts have; the
    dictionary is from the concept and its preserved captions or from lists of the caller, where the paper has a model
    choose among 5,000 concepts. Scores of the denoiser are not decomposed.

    Args:
        dictionary: YAML file of more directions, a list of prompts by the name of each.
        captions: So many preserved captions are directions, too, each of its own.
        vectors: What is decomposed: the states of each `token`, or of a `prompt`.
        rows: Of `token`: which of a prompt's states make a direction; see `text/states.py`.
        replace: Give the concept's coefficient to its anchor, which is the paper's editing.
        alpha: Weight of both penalties.
        tau: Share of the one that makes codes sparse, below 1.
        margin: Where the gate lies between the strongest kept prompt (0) and the weakest with the concept (1).
        templates: Patterns with one `{}` for the concept, its anchor and neighbours; "auto": those of its kind.
        ports: Which ports read less; as for `uce`.
    """

    name: ClassVar[str] = "concept_lancet"
    paper: ClassVar[str] = "[Concept Lancet](https://arxiv.org/abs/2504.02828)"
    family: ClassVar[str] = "runtime hook, text states"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "concept_lancet-prompt": {"vectors": "prompt"},
        "concept_lancet-shapes": {"replace": True},
    }
    strengths: ClassVar[str] = "no training; other prompts stay bit for bit; shows its decomposition"
    limits: ClassVar[str] = "can be switched off; needs this library to load"

    dictionary: str | None = None
    captions: int = 40
    vectors: Literal["token", "prompt"] = "token"
    rows: Rows = "tail"
    replace: bool = False
    alpha: float = 0.05
    tau: float = 0.95
    margin: float = 0.5
    templates: Templates = "auto"
    ports: tuple[Kind, ...] | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, captions=0, alpha=0)
        require_templates("templates", self.templates)
        if not 0 <= self.tau < 1 or self.alpha == 0:
            raise ValueError(f"expected alpha above 0 and tau from 0 to below 1, got {self.alpha} and {self.tau}")
        require_shares(self, "margin")

    def config(self) -> dict[str, Any]:
        """See `Eraser.config`; of the dictionary the name of the file alone."""
        return asdict(self) | ({"dictionary": Path(self.dictionary).name} if self.dictionary else {})

    def _fit(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, progress: bool) -> Patch:
        """Nothing is random, and nothing takes long enough to show progress."""
        groups = port_groups(pipe, self.ports)
        if self.ports != "auto":
            warn_of_missed_ports(pipe, self.ports)
        hashes = port_hashes(pipe, groups)
        weights = {port.parameter: port.module.weight for group in groups for port in group.ports}
        tensors: dict[str, torch.Tensor] = {}
        for text, code in self.fitted(pipe, concepts):
            for target in text.targets:
                named = {f"hook/{target}/{SparseConcepts.kind}/{part}": value for part, value in code.items()}
                # Of its own for each layer: a file holds no tensor twice.
                tensors |= {name: value.float().clone() for name, value in named.items()}
        dtype, readers = next(iter(weights.values())).dtype, text_readers(pipe)
        meta = patch_meta(self.name, self.config(), concepts, hashes, dtype, weights=weights, readers=readers)
        return Patch(tensors, meta | {"atoms": [atom.name for atom in self.atoms(concepts)]})

    def fitted(self, pipe: Any, concepts: Sequence[Concept]) -> list[tuple[Text, dict[str, torch.Tensor]]]:
        """The texts that ports read, each with the parts of its hook in float64.

        Raises:
            ValueError: A concept that has no larger coefficient in its own prompts than in kept ones.
        """
        texts = texts_of(pipe, port_groups(pipe, self.ports), self.vectors)
        fitted = self.directions(pipe, texts, concepts)
        near, others = kept_prompts(concepts, self.templates)
        kept = self.coefficients(pipe, fitted, [*near, *others])
        for position, (concept, prompts) in enumerate(zip(concepts, self.asked(concepts), strict=True)):
            asked = self.coefficients(pipe, fitted, prompts)
            for (text, parts), high, low in zip(fitted, asked, kept, strict=True):
                always = codes(text.padding(parts["atoms"].shape[1]), parts)[0]
                floor, gate = thresholds(high[:, position], torch.cat([low, always])[:, position], self.margin)
                if not (high[:, position] > gate).any():
                    raise ValueError(
                        f"expected a direction of {concept.name!r} that its prompts have more of than kept ones, got "
                        f"none; name more directions (dictionary), or keep other captions than {self.captions}"
                    )
                parts["floor"][position], parts["gate"][position] = floor, gate
        return fitted

    def directions(
        self, pipe: Any, texts: Sequence[Text], concepts: Sequence[Concept]
    ) -> list[tuple[Text, dict[str, torch.Tensor]]]:
        """The same with gates that nothing passes."""
        atoms, empty = self.atoms(concepts), whole("")
        encoded = self.reader(pipe, texts).encode([*(prompt for atom in atoms for prompt in atom.prompts), empty])
        numbers = [[atom.name for atom in atoms].index(concept.anchor) for concept in concepts if self.replace]
        fitted = []
        for text in texts:
            means = torch.stack(
                [
                    torch.cat([text.vectors(encoded[prompt], self.rows) for prompt in atom.prompts]).mean(dim=0)
                    for atom in atoms
                ]
            )
            centre = text.vectors(encoded[empty])[0] if text.whole else means.mean(dim=0)
            units = torch.nn.functional.normalize(means - centre, dim=1)
            own = units[: len(concepts)]
            closed = torch.full((len(concepts),), float("inf"), dtype=torch.float64)
            parts = {"atoms": units, "centre": centre, "away": own - units[numbers] if numbers else own}
            parts["penalty"] = self.alpha * torch.tensor([self.tau, 1 - self.tau], dtype=torch.float64)
            fitted.append((text, parts | {"floor": closed, "gate": closed.clone()}))
        return fitted

    def coefficients(
        self, pipe: Any, fitted: Sequence[tuple[Text, Mapping[str, torch.Tensor]]], prompts: Sequence[str]
    ) -> list[torch.Tensor]:
        """The largest coefficient of every atom among the vectors of prompts, `[prompts, n]`, for each text."""
        reader = self.reader(pipe, [text for text, _ in fitted])
        largest: list[list[torch.Tensor]] = [[] for _ in fitted]
        for start in range(0, len(prompts), _PROMPTS_A_BATCH):
            batch = [whole(text) for text in prompts[start : start + _PROMPTS_A_BATCH]]
            encoded = reader.encode(batch)
            for rows, (text, parts) in zip(largest, fitted, strict=True):
                rows += [codes(text.vectors(encoded[prompt]), parts)[0].amax(dim=0) for prompt in batch]
        return [torch.stack(rows) for rows in largest]

    def atoms(self, concepts: Sequence[Concept]) -> list[Atom]:
        """The dictionary, the concepts first."""
        return atoms_of(concepts, self.templates, self.captions, self.dictionary, aliases=self.aliases)

    def asked(self, concepts: Sequence[Concept]) -> list[list[str]]:
        """Prompts with each concept: templates, and captions with it in place."""
        return [
            list(dict.fromkeys(text for text, _ in contexts(concept, self.templates, aliases=self.aliases)))
            for concept in concepts
        ]

    def reader(self, pipe: Any, texts: Sequence[Text]) -> Reader:
        """How prompts are encoded."""
        pooled = any(text.group.kind == "pooled" for text in texts)
        return Reader(pipe, "tail", pooled, self.max_sequence_length, self.clip_skip)


def thresholds(asked: torch.Tensor, kept: torch.Tensor, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The coefficients above which a concept leaves (floor) and is there at all (gate).

    The floor is above all kept prompts. The gate lies between it and the weakest prompt with the concept; where kept
    ones are stronger, no kept prompt may pass.

    Args:
        asked: The largest coefficient of each prompt with the concept, `[e]`.
        kept: The same of the others, `[r]`.
        margin: 0 is at the kept prompts, 1 at those with the concept.
    """
    floor = kept.max().clamp(min=_LEAST) * _ROUNDING
    return floor, floor + margin * (asked.min() / _ROUNDING - floor).clamp(min=0)
