"""The plots of the leaderboard's page: who is in them, and where."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.made_results import PILLARS, write_results

from erasers.evaluation.leaderboard.plots import Scale, pairs_of, points, scatter, small_multiples, spread
from erasers.evaluation.leaderboard.views import TaskView, task_view
from erasers.evaluation.scores.results import read_tasks


def view_of(store: Path, **made: object) -> TaskView:
    """The view of made-up results."""
    write_results(store, **made)  # type: ignore[arg-type]
    ((title, rows),) = read_tasks([store]).items()
    return task_view(title, rows)


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        ([50.0, 10.0, 90.0], [50.0, 10.0, 90.0]),
        ([50.0, 50.0, 50.0], [37.0, 50.0, 63.0]),
        ([1.0, 2.0], [0.0, 13.0]),
        ([99.0, 98.0, 97.0], [100.0, 87.0, 74.0]),
        ([0.0] * 10, [13.0 * k for k in range(10)]),
        ([], []),
    ],
)
def test_names_lie_as_near_as_they_fit_and_in_their_order(wanted: list[float], places: list[float]) -> None:
    assert spread(wanted, 13.0, 0.0, 100.0) == pytest.approx(places)


def test_scores_lie_between_the_ends_and_those_below_on_the_edge() -> None:
    scale = Scale(0.5, 100.0, 200.0)
    assert [scale(score) for score in (0.5, 0.75, 1.0, 0.2)] == [100.0, 150.0, 200.0, 100.0]
    assert scale.ticks() == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert Scale(0.0, 0.0, 1.0).ticks() == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_erasure_is_plotted_and_robustness_where_there_are_attacks(tmp_path: Path) -> None:
    first = view_of(tmp_path / "a").boards[0]
    assert pairs_of(first) == [("neighbours", "erasure")]
    second = view_of(tmp_path / "b", pillars=[*PILLARS, "robustness"], detailed=True).boards[0]
    assert pairs_of(second) == [("neighbours", "erasure"), ("neighbours", "robustness")]


def test_what_has_no_neighbours_is_plotted_against_the_rest(tmp_path: Path) -> None:
    view = view_of(tmp_path, unscored=["neighbour"], pillars=["erasure", "specificity"])
    assert pairs_of(view.boards[0]) == [("specificity", "erasure")]
    assert "erasure against specificity" in small_multiples("t", view.boards[1:], "erasure")


def test_a_board_without_scores_has_no_plot(tmp_path: Path) -> None:
    view = view_of(tmp_path, unscored=["explicit", "synonym", "neighbour", "unrelated"])
    assert pairs_of(view.boards[0]) == []


def test_every_row_is_there_once_with_its_scores_in_words(tmp_path: Path) -> None:
    board = view_of(tmp_path).boards[0]
    plot = scatter("made", board, "neighbours", "erasure")
    some = points(board, "neighbours", "erasure")
    assert [point.row.name for point in some] == [row.name for row in board.rows]
    for point in some:
        assert plot.count(f'data-row="{point.row.name}"') == 1
        assert f"<title>{point.row.name}: neighbours {point.kept.value:.2f} (" in plot
        assert f"erasure {abs(point.won.value):.2f} ({abs(point.won.low):.2f} to {point.won.high:.2f})" in plot
    assert plot.count("<circle") == 3
    assert plot.count('<rect class="dot"') == 2
