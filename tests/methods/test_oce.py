"""OCE: what an orthogonal map keeps, where it turns concepts, its low-rank form, and what the official code does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from erasers import Concept, get_eraser
from erasers.closed_form.layers import low_rank, value_ports
from erasers.methods.oce import basis_of, procrustes, turn_of
from erasers.models.ports import Port, find_family, port_groups

STAR = Concept("star", anchor="circle", preserve=["moon", "a red moon", "blue art"], neighbours=["ring"])
LOUD = pytest.mark.filterwarnings("ignore:the values of .* are turned:UserWarning")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(out: int, width: int, e: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W, M and the targets W c of a layer, with two concepts and one guide."""
    weight, moment = (
        normal(out, width),
        10 * torch.cov(normal(width, 50, seed=1)) + torch.eye(width, dtype=torch.float64),
    )
    targets, guides = weight @ normal(width, 2, seed=2), weight @ normal(width, 1, seed=3)
    return weight, procrustes(weight @ moment @ weight.T, basis_of(targets), basis_of(guides), e), targets


def test_the_turn_is_orthogonal_and_keeps_lengths_and_angles():
    weight, objective, _ = problem(6, 9, 500.0)
    turn = turn_of(objective)
    new = turn @ weight
    torch.testing.assert_close(turn.T @ turn, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(new.T @ new, weight.T @ weight)
    torch.testing.assert_close(torch.linalg.svdvals(new), torch.linalg.svdvals(weight))
    assert (new - weight).norm() > 0.1 * weight.norm()


def test_nothing_to_erase_turns_nothing():
    weight, objective, _ = problem(6, 9, 0.0)
    torch.testing.assert_close(turn_of(objective) @ weight, weight, rtol=1e-9, atol=1e-9)


def test_a_tall_weight_is_turned_as_the_whole_problem_turns_it(pipe):
    """Layers that are taller than the text is wide are solved inside of their span."""
    pipe.unet.double()
    eraser = get_eraser("oce", error=1e-9, erase_scale=50.0, caption_scale=1.0, preserve_scale=0.0, stay_scale=1.0)
    (task,) = eraser.gather(pipe, [STAR], port_groups(pipe))
    layer = torch.nn.Linear(32, 40, bias=False, dtype=torch.float64)
    layer.weight.data = normal(40, 32)
    moment = task.preserve.covariance() + torch.eye(32, dtype=torch.float64)
    _, a, b, _ = eraser.turn(task, Port("unet.tall.to_v", layer), moment)
    weight = layer.weight.detach()
    targets, guides = (basis_of(weight @ rows.double().T) for rows in (task.erase, task.anchor))
    whole = turn_of(procrustes(weight @ moment @ weight.T, targets, guides, 50.0)) @ weight
    torch.testing.assert_close(weight + b @ a, whole, rtol=1e-6, atol=1e-6)


def test_the_turn_is_the_best_orthogonal_one():
    _, objective, _ = problem(6, 9, 50.0)
    best = float((turn_of(objective) * objective).sum())
    others = [torch.linalg.qr(normal(6, 6, seed=seed)).Q for seed in range(20)] + [torch.eye(6, dtype=torch.float64)]
    assert all(float((other * objective).sum()) < best for other in others)


def test_the_code_holds_the_transpose_and_negates_the_last_row():
    kept, targets, guides = torch.eye(5, dtype=torch.float64), basis_of(normal(5, 1)), basis_of(normal(5, 1, seed=1))
    right, left = targets @ targets.T, guides @ guides.T
    away = (torch.eye(5, dtype=torch.float64) - left) @ right
    torch.testing.assert_close(procrustes(kept, targets, guides, 3.0), kept - 3 * away)
    torch.testing.assert_close(procrustes(kept, targets, guides, 3.0, transposed=True), kept - 3 * away.T)
    _, objective, _ = problem(6, 9, 500.0)
    objective[0] = -objective[0]
    for matrix in (objective, -objective[[1, 0, 2, 3, 4, 5]]):
        plain, official = turn_of(matrix), turn_of(matrix, upstream_compat=True)
        sign = float(torch.linalg.det(plain).sign())
        torch.testing.assert_close(official[:-1], plain[:-1])
        torch.testing.assert_close(official[-1], sign * plain[-1])


def test_concepts_with_one_guide_count_it_once():
    guide = normal(6, 1)
    assert basis_of(guide.repeat(1, 3)).shape == (6, 1)
    targets = torch.cat([100 * normal(6, 1, seed=1), normal(6, 1, seed=2)], dim=1)
    basis = basis_of(targets)
    torch.testing.assert_close(basis @ basis.T @ targets, targets)


@pytest.mark.parametrize("error", [0.3, 0.01, 1e-9])
def test_low_rank_leaves_out_what_it_may_with_the_least_rank(error):
    left, right = (torch.linalg.qr(normal(40, 12, seed=seed)).Q for seed in (0, 1))
    values = 0.3 ** torch.arange(12, dtype=torch.float64)
    delta = left * values @ right.T
    a, b = low_rank(delta, error)
    share = [float(values[count:].norm() / values.norm()) for count in range(13)]
    assert float((delta - b @ a).norm() / delta.norm()) <= error * (1 + 1e-6) + 1e-12
    assert len(a) == next(count for count in range(13) if share[count] <= error)


def test_what_is_not_of_low_rank_is_not_made_so():
    assert low_rank(torch.eye(20, dtype=torch.float64), 0.01) is None


@LOUD
def test_a_patch_has_the_values_alone_and_a_loose_error_makes_it_smaller(pipe):
    exact, loose = (get_eraser("oce", error=error).fit(pipe, STAR) for error in (1e-6, 0.2))
    values = sorted(port.parameter for _, ports in value_ports(port_groups(pipe)) for port in ports)
    assert loose.parameters == exact.parameters == values
    assert all(name.endswith("attn2.to_v.weight") for name in values)
    assert loose.nbytes < exact.nbytes
    assert any(name.startswith("dense/") for name in exact.tensors)
    assert all(name.startswith("lowrank/") for name in loose.tensors)
    for name in values:
        weight = pipe.unet.get_parameter(name.removeprefix("unet."))
        with exact.applied(pipe):
            new = weight.double()
        torch.testing.assert_close(new.T @ new, weight.double().T @ weight.double(), rtol=1e-4, atol=1e-4)


def cosine(pipe: Any, caught: Any) -> float:
    return float(str(caught[0].message).partition("a cosine of ")[2].split()[0])


def test_a_reflection_is_reported_and_a_small_turn_is_not(pipe, recwarn):
    with pytest.warns(UserWarning, match="the values of star are turned to a cosine of -") as caught:
        get_eraser("oce").fit(pipe, STAR)
    assert -1 <= cosine(pipe, caught) < -0.5
    recwarn.clear()
    get_eraser("oce", erase_scale=0.01).fit(pipe, STAR)
    assert not list(recwarn)


def test_scales_are_the_papers_for_a_kind_and_many_and_an_embedder(pipes):
    def scales(concepts: list[Concept], family: Any, **options: Any) -> tuple[Any, ...]:
        eraser = get_eraser("oce", **options).scaled(concepts, family)
        return eraser.erase_scale, eraser.caption_scale, eraser.preserve_scale, eraser.stay_scale

    family = find_family(pipes("sd1"))[0]
    assert scales([STAR], family) == (2000, 10, 0, 10)
    assert scales([Concept("art", kind="style")], family) == (500, 10, 1, 10)
    assert scales([Concept(f"person {number}", kind="identity") for number in range(50)], family) == (800, 70, 2, 10)
    assert scales([STAR], family, erase_scale=7.0) == (7.0, 10, 0, 10)


@LOUD
def test_the_patch_says_which_scales_were_taken(pipe):
    config = get_eraser("oce").fit(pipe, STAR).meta["config"]
    assert (config["erase_scale"], config["stay_scale"]) == (2000, 10)


@LOUD
def test_neighbours_that_weigh_are_turned_less(pipe):
    encoded = get_eraser("oce").gather(pipe, [STAR], port_groups(pipe))[0]
    ring = get_eraser("oce").kept_rows(encoded).float()
    weight = value_ports(port_groups(pipe))[0][1][0].module.weight
    before, moved = weight.detach().clone(), {}
    for scale in (0.0, 1e6):
        with get_eraser("oce", preserve_scale=scale).fit(pipe, STAR).applied(pipe):
            moved[scale] = float((ring @ (weight.detach() - before).T).norm())
    assert moved[1e6] < 0.5 * moved[0.0]


@pytest.mark.parametrize(("field", "value"), [("erase_scale", -1.0), ("stay_scale", 0.0), ("error", 0.0)])
def test_bad_options_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        get_eraser("oce", **{field: value})
