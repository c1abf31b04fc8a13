"""LEACE: no linear probe tells the concept, and no map that does as much changes the states less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from erasers import Concept, get_eraser, load_pipeline
from erasers.closed_form.algebra import gram, oblique_edit_gram, transform_of
from erasers.models.ports import port_groups
from erasers.worlds.shapes.prompts import concept_for

STAR = Concept("star", anchor="circle", preserve=["moon", "a red moon", "blue art"], neighbours=["ring"])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def task_of(pipe: Any, *concepts: Concept, **options: Any) -> tuple[Any, Any]:
    eraser = get_eraser("leace", **options)
    (task,) = eraser.gather(pipe, concepts, port_groups(pipe))
    return eraser, task


def probe(states: torch.Tensor, labels: torch.Tensor) -> float:
    """The loss of the best logistic regression, in units of that of chance."""
    states = (states - states.mean(dim=0)) / states.std()
    weight = torch.zeros(states.shape[1], 1, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = functional.binary_cross_entropy_with_logits((states @ weight + bias)[:, 0], labels)
        value.backward()
        return value

    optimizer.step(loss)
    return float(loss().detach() / torch.tensor(2.0).log())


def test_a_probe_fitted_after_the_edit_does_no_better_than_chance():
    eraser, task = task_of(load_pipeline("shapes"), concept_for("star"))
    states = torch.cat([task.erase, task.anchor]).double()
    labels = torch.cat([torch.ones(len(task.erase)), torch.zeros(len(task.anchor))]).double()
    edited = states @ transform_of(*eraser.edit(task, {})).T
    assert probe(states, labels) < 0.01
    assert probe(edited, labels) == pytest.approx(1, abs=1e-6)


def test_several_concepts_are_guarded_each(pipe):
    concepts = (STAR, Concept("nude", anchor="moon"))
    eraser, task = task_of(pipe, *concepts)
    a, b = eraser.edit(task, {})
    transform = transform_of(a, b)
    assert a.shape == (2, 32)
    for concept in concepts:
        difference = eraser.difference(task, concept)
        assert (transform @ difference).norm() < 1e-9 * difference.norm()
    torch.testing.assert_close(transform @ transform, transform, rtol=1e-9, atol=1e-9)


def test_it_is_the_papers_projection_on_centred_states():
    """P = I - W^+ P_(W S_xz) W with W the whitening, as section 4 has it."""
    states, labels = normal(60, 7), (torch.arange(60) % 2).double()
    states = states @ normal(7, 7, seed=1) + 3 * labels[:, None] * normal(1, 7, seed=2)
    states = states - states.mean(dim=0)
    covariance = gram(states) / len(states)
    across = states.T @ (labels - labels.mean())[:, None] / len(states)
    values, vectors = torch.linalg.eigh(covariance)
    whitening, back = (vectors * values**power @ vectors.T for power in (-0.5, 0.5))
    direction = functional.normalize(whitening @ across, dim=0)
    expected = torch.eye(7, dtype=torch.float64) - back @ direction @ direction.T @ whitening
    torch.testing.assert_close(transform_of(*oblique_edit_gram(across, covariance, 1e-14)), expected)


def test_no_map_that_guards_changes_the_states_less(pipe):
    eraser, task = task_of(pipe, STAR)
    moment, transform = eraser.moment(task), transform_of(*eraser.edit(task, {}))
    direction = functional.normalize(eraser.difference(task, STAR), dim=0)

    def changed(other: torch.Tensor) -> float:
        step = other - torch.eye(32, dtype=torch.float64)
        return float((step @ moment @ step.T).trace())

    best = changed(transform)
    for seed in range(20):
        # Anything else that takes the difference to 0.
        other = transform + 0.1 * normal(32, 32, seed=seed) @ (
            torch.eye(32, dtype=torch.float64) - torch.outer(direction, direction)
        )
        assert (other @ direction).norm() < 1e-9
        assert changed(other) > best


def test_the_moment_is_that_of_all_states(pipe):
    eraser, task = task_of(pipe, STAR)
    kept = task.preserve.few if task.preserve.few is not None else None
    total = gram(task.erase) + gram(task.anchor) + (gram(kept) if kept is not None else task.preserve.many)
    count = len(task.erase) + len(task.anchor) + task.preserve.count
    torch.testing.assert_close(eraser.moment(task), total / count)


def test_a_ridge_of_nothing_is_refused():
    with pytest.raises(ValueError, match="ridge"):
        get_eraser("leace", ridge=0.0)
