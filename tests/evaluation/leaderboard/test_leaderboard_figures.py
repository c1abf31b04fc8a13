"""Measurements that the leaderboard's page draws behind the tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.made_results import write_results

from erasers.evaluation.leaderboard.figures import figure_of
from erasers.evaluation.leaderboard.write import write_leaderboard

INTERFERENCE = {
    "model": "shapes",
    "measurement": "interference",
    "samples": 4,
    "receivers": ["star", "cross", "red"],
    "rows": {
        "uce": {
            "kept": {"star": {"star": 0.0, "cross": 0.75, "red": None}, "red": {"star": 1.0, "cross": 1.0, "red": 0.0}},
            "drift": {"star": {"star": 0.5, "cross": 0.1, "red": 0.2}, "red": {"star": 0.0, "cross": 0.0, "red": 0.4}},
            "correlation": {"rho": 0.31, "p": 0.004},
        }
    },
}


def share(value: float) -> dict[str, Any]:
    return {"value": value, "n": 60, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1)}


MANY = {
    "model": "shapes",
    "measurement": "many",
    "words": ["star", "red", "zorblat"],
    "samples": 60,
    "rows": [
        {"method": method, "count": count, "shown": share(0.1 * count), "kept": share(1.0)}
        for method in ("uce", "<b>")
        for count in (3, 1)
    ],
}


def written(folder: Path, measured: dict[str, Any]) -> Path:
    path = folder / "measured.json"
    path.write_text(json.dumps(measured))
    return path


def test_a_map_has_a_cell_for_every_pair_that_was_measured(tmp_path: Path) -> None:
    figure = figure_of(written(tmp_path, INTERFERENCE))
    assert figure.count('<rect class="lost"') == 5
    assert figure.count('<rect class="drift"') == 6
    assert "star erased, cross asked: kept 0.75, drift 0.100" in figure
    assert "with likeness of words 0.31, p 0.004" in figure
    assert "up to 0.5. 4 pictures a cell" in figure


def test_shades_are_what_is_lost_and_moved_on_one_scale(tmp_path: Path) -> None:
    cells = figure_of(written(tmp_path, INTERFERENCE)).split("<rect ")[1:]
    shades = [float(cell.split('fill-opacity="')[1].split('"')[0]) for cell in cells]
    assert shades == [1.0, 0.28, 0.04, 0.04, 1.0, 1.0, 0.23, 0.42, 0.04, 0.04, 0.81]


def test_a_curve_has_a_line_a_method_in_the_order_of_the_counts(tmp_path: Path) -> None:
    figure = figure_of(written(tmp_path, MANY))
    assert figure.count('<path class="line"') == 4
    assert "uce, 1: 0.10, 3: 0.30" in figure
    assert "first 1 to 3 of: star, red, zorblat" in figure
    assert "&lt;b&gt;" in figure
    assert "<b>" not in figure


@pytest.mark.parametrize(
    "measured", [{}, {"measurement": "traces", "model": "shapes"}, {"measurement": "many", "model": "shapes"}, []]
)
def test_other_files_are_refused_by_name(tmp_path: Path, measured: Any) -> None:
    path = written(tmp_path, measured)
    with pytest.raises(ValueError, match=r"expected a measurement \(interference or many\) in .*measured.json"):
        figure_of(path)


def test_the_page_has_them_behind_the_tasks(tmp_path: Path) -> None:
    write_results(tmp_path)
    write_leaderboard([tmp_path / "shapes-made-up@1"], tmp_path, measurements=[written(tmp_path, INTERFERENCE)])
    page = (tmp_path / "leaderboard.html").read_text()
    assert page.index("What goes with what, shapes") > page.index("shapes-made-up@1</h2>")
    assert page.count("<section") == 2
