"""LEACE: least-squares concept erasure (arXiv 2306.03819) of prompt states: no linear probe tells the concept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from erasers.closed_form.algebra import gram, leading_directions, oblique_edit_gram
from erasers.closed_form.pairs import stack_pairs
from erasers.concept import Concept
from erasers.methods.text_maps import Task, TextMaps
from erasers.options import require_above
from erasers.text.prompts import Templates


@dataclass(frozen=True, kw_only=True)
class LEACE(TextMaps):
    """Change prompt states least, so that no linear probe tells those with a concept from those with its anchor.

    The states are those of prompts with the concept (z = 1), of the same prompts with its anchor (z = 0), and of what
    is preserved. Linear probes tell nothing of z exactly where what they read is uncorrelated with it (section 3). Here
    that is T V = 0 for the mean differences V between prompts with a concept and with its anchor, one a concept. Of
    these maps

        T = I - V (V' K V)^-1 V' K,    K = E[x x']^-1

    changes states least in the mean square (section 4, of maps without a bias: `algebra.oblique_edit`). That is a
    baseline, and no way to an anchor: the denoiser is not linear, and pictures say what it makes of the states.

    *Corrected*: no bias, which the weights of text maps do not have; it would keep the mean in its place and guards
    nothing, and a second moment that is not centred makes T the best map without one. The mathematics is here, not from
    the package `concept-erasure`, which compiles by `torch.jit.script` on import, as torch no longer wants it.

    Args: those of `TextMaps`, and
        ridge: What is added to E[x x'], as a share of its mean eigenvalue.
    """

    name: ClassVar[str] = "leace"
    paper: ClassVar[str] = "[LEACE](https://arxiv.org/abs/2306.03819)"
    family: ClassVar[str] = "closed form, text maps"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    strengths: ClassVar[str] = "no linear probe of the states tells the concept"
    limits: ClassVar[str] = "a baseline: the denoiser is not linear"

    templates: Templates = "auto"
    ridge: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        require_above("ridge", self.ridge, 0)

    def edit(self, task: Task, hashes: Mapping[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
        """See `TextMaps.edit`."""
        differences = torch.stack([self.difference(task, concept) for concept in task.concepts])
        moment = self.moment(task)
        # Of equal length, so that none is lost beside a large one; concepts of one difference count once.
        directions = leading_directions(torch.nn.functional.normalize(differences, dim=1), len(differences))
        return oblique_edit_gram(directions, moment, self.ridge * float(moment.diagonal().mean()))

    def difference(self, task: Task, concept: Concept) -> torch.Tensor:
        """The mean of the states with a concept less that of the same prompts with its anchor `[d]`."""
        rows = stack_pairs(task.group, task.encoded, self.prompt_pairs([concept], self.templates), self.rows)
        with_it, without = (states.double().mean(dim=0) for states in rows)
        return with_it - without

    def moment(self, task: Task) -> torch.Tensor:
        """E[x x'] `[d, d]` of all states: with concepts, with anchors, and preserved."""
        count = len(task.erase) + len(task.anchor) + task.preserve.count
        return (gram(task.erase) + gram(task.anchor) + task.preserve.count * task.preserve.covariance()) / count
