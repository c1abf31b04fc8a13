"""Sparse codes over directions of concepts, and the hook that takes some of them out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from erasers.files.tensors import PatchError
from erasers.patch.sparse import SparseConcepts, codes, elastic_net, without

V = 12
# What is not 0 in what scikit-learn 1.9.1 gives for the problem of `problem()`:
# ElasticNet(alpha=.05 / 12, l1_ratio=.95, fit_intercept=False, tol=1e-14, max_iter=10**6)
SUPPORT = {0: -0.047881526, 2: 1.419226935, 7: -0.662360871, 11: 0.491329082, 18: 0.015074393}


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Unit atoms `[20, 12]`, and the sum of three of them."""
    grid = torch.arange(20 * V, dtype=torch.float64).view(20, V)
    atoms = torch.nn.functional.normalize(torch.sin(1.7 * grid) + torch.cos(0.3 * grid * grid), dim=1)
    return atoms, 1.5 * atoms[2] - 0.8 * atoms[7] + 0.6 * atoms[11]


def parts(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    atoms = torch.nn.functional.normalize(torch.randn(5, V, generator=torch.Generator().manual_seed(0)), dim=1)
    own = {"atoms": atoms, "centre": torch.full((V,), 0.1), "penalty": torch.tensor([0.0475, 0.0025])}
    own |= {"away": atoms[:1], "gate": torch.tensor([0.3]), "floor": torch.tensor([0.1])}
    return own | changes


def test_the_solver_finds_what_scikit_learn_finds():
    atoms, y = problem()
    w = elastic_net(atoms @ atoms.T, atoms @ y, 0.0475, 0.0025)
    assert w.nonzero().flatten().tolist() == list(SUPPORT)
    torch.testing.assert_close(w[list(SUPPORT)], torch.tensor(list(SUPPORT.values())).double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("lasso", "ridge"), [(0.0475, 0.0025), (0.0, 0.1), (0.5, 0.5)])
def test_the_solver_meets_the_conditions_of_the_minimum(lasso, ridge):
    generator = torch.Generator().manual_seed(1)
    atoms = torch.nn.functional.normalize(torch.randn(16, V, generator=generator).double(), dim=1)
    y = torch.nn.functional.normalize(torch.randn(9, V, generator=generator).double(), dim=1)
    w = elastic_net(atoms @ atoms.T, y @ atoms.T, lasso, ridge)
    slope = (y - w @ atoms) @ atoms.T - ridge * w
    torch.testing.assert_close(slope[w != 0], lasso * w.sign()[w != 0], rtol=0, atol=1e-9)
    assert (slope[w == 0].abs() <= lasso + 1e-6).all()
    # One problem at a time, and above the largest product nothing is left.
    torch.testing.assert_close(elastic_net(atoms @ atoms.T, y[3] @ atoms.T, lasso, ridge), w[3])
    assert not elastic_net(atoms @ atoms.T, y @ atoms.T, 1.01, ridge).any()


def test_gradients_are_those_of_the_solution():
    atoms, y = problem()
    gram, products = atoms @ atoms.T, (atoms @ y).requires_grad_()
    assert torch.autograd.gradcheck(lambda b: elastic_net(gram, b, 0.0475, 0.0025), products, fast_mode=True)


@pytest.mark.parametrize("kind", ["token", "first columns", "prompt", "vector"])
def test_the_concept_leaves_with_its_coefficient_and_all_else_stays_bit_for_bit(kind):
    own, generator = parts(), torch.Generator().manual_seed(2)
    shape = {"token": (3, 4, V), "first columns": (3, 4, V + 2), "prompt": (3, 4, V // 4), "vector": (3, V)}[kind]
    rows = torch.randn(shape, generator=generator)
    vectors = rows.flatten(1)[:, None] if kind == "prompt" else rows.view(3, -1, shape[-1])[..., :V]
    vectors[:] = own["centre"] + torch.randn(*vectors.shape[:2], 4, generator=generator) @ own["atoms"][1:]
    vectors[1, 0] = own["centre"] + 2 * own["atoms"][0] + 0.2 * own["atoms"][3]
    code, norm = codes(vectors, own)
    moved = without(rows, own, 1.0)
    assert torch.equal(moved[[0, 2]], rows[[0, 2]])
    assert not torch.equal(moved[1], rows[1])
    lost = torch.where(code[..., :1] > own["floor"], code[..., :1] * norm, 0.0) * own["away"]
    seen = moved.flatten(1)[:, None] if kind == "prompt" else moved.view(3, -1, shape[-1])
    torch.testing.assert_close(seen[1, :, :V], (vectors - lost)[1])
    assert torch.equal(seen[1, :, V:], rows.view(3, -1, shape[-1])[1, :, V:]) or kind == "prompt"
    again, rest = codes(seen[..., :V], own)
    assert (again * rest)[1, 0, 0].abs() < 0.1 * (code * norm)[1, 0, 0]
    torch.testing.assert_close(without(rows.flip(0), own, 1.0).flip(0), moved)
    assert without(rows, own, 0) is rows
    torch.testing.assert_close(moved - rows, 2 * (without(rows, own, 0.5) - rows))


def test_below_its_floor_a_token_stays_beside_one_that_loses_the_concept():
    own = parts()
    rows = torch.stack([own["centre"] + 2 * own["atoms"][0], own["centre"] - own["atoms"][0], own["centre"]])[None]
    moved = without(rows, own, 1.0)
    assert [torch.equal(moved[0, number], rows[0, number]) for number in range(3)] == [False, True, True]


def test_attacks_have_a_gradient_before_the_gate_and_behind_it():
    own = parts(gate=torch.tensor([0.99]))
    for strength, passes in ((2.0, True), (0.2, False)):
        rows = (own["centre"] + strength * own["atoms"][0] + 0.05 * own["atoms"][1])[None, None].requires_grad_()
        moved = without(rows, parts(gate=torch.tensor([0.5 if passes else 0.9999])), 1.0)
        assert torch.equal(moved.detach(), rows.detach()) is not passes
        weight = torch.randn(V, generator=torch.Generator().manual_seed(3))
        (slope,) = torch.autograd.grad((moved * weight).sum(), rows)
        assert not torch.equal(slope[0, 0], weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"centre": torch.zeros(V - 1)}, r"atoms \[n, v\]"),
        ({"other": torch.zeros(1)}, "expected the parts"),
        ({"away": torch.zeros(2, V)}, "expected the parts"),
        ({"penalty": torch.tensor([0.1, 0.0])}, "penalties"),
        ({"gate": torch.tensor([0.05])}, "floor <= gate"),
        ({"gate": torch.tensor([0.0]), "floor": torch.tensor([0.0])}, "gate above 0"),
    ],
)
def test_parts_that_do_not_fit(changes, message):
    with pytest.raises(PatchError, match=message):
        SparseConcepts("unet", parts(**changes))


class Reads(torch.nn.Module):
    def forward(self, rows: Any) -> Any:
        return rows


def test_rows_of_another_model():
    module = Reads()
    hook = SparseConcepts("unet.x", parts())
    hook.check(module)
    (handle,) = hook.install(module, 1.0, module)
    for rows in (torch.zeros(1, 3, V - 1), torch.zeros(V), "text"):
        with pytest.raises(PatchError, match="12 numbers a token or a prompt|as a tensor"):
            module(rows)
    assert module(None) is None
    handle.remove()
