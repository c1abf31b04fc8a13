"""The map of the house: its pictures are what the imports say, and the house is as simple as it says."""

from __future__ import annotations

import grimp
import pytest
from support import REPOSITORY
from support.scripts import script

MAP = script("docs", "architecture")


def graph_of(*imports: tuple[str, str]) -> grimp.ImportGraph:
    graph = grimp.ImportGraph()
    for name in {name for arrow in imports for name in arrow}:
        for end, letter in enumerate(name):
            if letter == ".":
                graph.add_module(name[:end])
    for importer, imported in imports:
        graph.add_import(importer=importer, imported=imported)
    return graph


def test_the_pictures_are_what_the_imports_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert MAP.main(["--check"]) == 0, capsys.readouterr().out
    assert "circles at any depth: 0" in capsys.readouterr().out


def test_a_picture_that_is_not_current_is_told(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(MAP, "__file__", str(tmp_path / "architecture.py"))
    assert MAP.main(["--check"]) == 1
    assert "docs/architecture.svg is not what the imports say" in capsys.readouterr().out
    assert MAP.main([]) == 0
    (tmp_path / "architecture-evaluation.svg").write_text("<svg/>")
    assert MAP.main(["--check"]) == 1
    assert "docs/architecture-evaluation.svg" in capsys.readouterr().out


def test_the_house_has_few_floors_and_no_circle() -> None:
    graph = grimp.build_graph("erasers", cache_dir=None)
    assert MAP.all_circles(graph) == []
    figures = MAP.figures(graph)
    assert figures["rooms on the longest way down"] <= figures["layers"] <= 8
    assert figures["modules"] == len([*(REPOSITORY / "erasers").rglob("*.py")])


def test_the_page_shows_every_picture() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in MAP.PICTURES:
        assert f"]({name})" in page


def test_arrows_count_files_between_neighbours() -> None:
    graph = graph_of(
        ("p.a.x", "p.b"), ("p.a.y", "p.b.z"), ("p.a.x", "p.a.y"), ("p.a", "p.c"), ("p.b.z", "p"), ("p.b", "q")
    )
    assert MAP.arrows_between(graph, "p") == {("a", "b"): 2, ("a", "c"): 1}
    assert MAP.arrows_between(graph, "p.a") == {("x", "y"): 1}


def test_arrows_that_a_longer_way_implies_are_left_out() -> None:
    arrows = [("a", "b"), ("b", "c"), ("a", "c"), ("a", "d"), ("c", "e"), ("a", "e")]
    assert MAP.shortest(arrows) == [("a", "b"), ("b", "c"), ("a", "d"), ("c", "e")]
    assert MAP.longest_way(arrows) == 4


def test_circles_are_seen_between_files_and_between_packages() -> None:
    graph = graph_of(("p.a", "p.b"), ("p.b", "p.c"), ("p.c", "p.a"), ("p.c", "p.d"))
    assert MAP.all_circles(graph) == [["p.a", "p.b", "p.c"]]
    graph = graph_of(("p.a.x", "p.b.y"), ("p.b.z", "p.a.w"))
    assert MAP.all_circles(graph) == [["p.a", "p.b"]]
    graph = graph_of(("p.q.a.x", "p.q.b"), ("p.q.b", "p.q.a.y"))
    assert MAP.all_circles(graph) == [["p.q.a", "p.q.b"]]
    assert MAP.all_circles(graph_of(("p.a", "p.b"), ("p.a", "p.c"), ("p.b", "p.c"))) == []


@pytest.mark.parametrize(
    ("wanted", "middles"),
    [
        ([100.0, 300.0], [100.0, 300.0]),
        ([300.0, 300.0], [240.5, 359.5]),
        ([-500.0, 300.0], [MAP.LEFT + 55.0, 300.0]),
        ([2000.0, 2000.0], [MAP.WIDTH - MAP.MARGIN - 55.0 - 119.0, MAP.WIDTH - MAP.MARGIN - 55.0]),
    ],
)
def test_rooms_stand_side_by_side(wanted: list[float], middles: list[float]) -> None:
    assert MAP.side_by_side(wanted, [110, 110]) == pytest.approx(middles)


def test_rooms_do_not_overlap_and_words_fit() -> None:
    graph = grimp.build_graph("erasers", cache_dir=None)
    for package in MAP.PICTURES.values():
        house = MAP.read(graph, package)
        laid = MAP.plan(house, MAP.steps_of(house))
        assert {room.name for room in laid.rooms.values()} == {room.name for floor in house.floors for room in floor}
        for floor in range(len(house.floors)):
            stops = sorted((stop for stop in laid.middles if stop[0] == floor), key=lambda stop: laid.middles[stop])
            sides = [
                (laid.middles[stop] - laid.widths[stop] / 2, laid.middles[stop] + laid.widths[stop] / 2)
                for stop in stops
            ]
            assert all(left[1] <= right[0] for left, right in zip(sides, sides[1:], strict=False))
            assert sides[0][0] >= 0
            assert sides[-1][1] <= MAP.WIDTH
        assert all(0 < len(lines) <= MAP.LINES for lines in laid.words.values())


def test_long_words_are_cut_at_a_comma_and_told_to_be() -> None:
    assert MAP.said("Short words", 126) == ["Short words"]
    assert MAP.said("One thing that is so long that it fills lines, and another that is as long", 126) == [
        "One thing that",
        "is so long that",
        "it fills lines",
    ]
    lines = MAP.said("word " * 60, 126)
    assert len(lines) == MAP.LINES
    assert lines[-1].endswith("…")


def test_a_room_without_a_floor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = grimp.build_graph("erasers", cache_dir=None)
    graph.add_module("erasers.attic")
    with pytest.raises(SystemExit, match="attic"):
        MAP.read(graph, "erasers")
    with pytest.raises(SystemExit, match="erasers.patch"):
        MAP.read(graph, "erasers.patch")


def test_an_import_that_others_imply_draws_the_same_picture() -> None:
    graph = grimp.build_graph("erasers", cache_dir=None)
    drawn = MAP.draw(MAP.read(graph, "erasers"), "")
    graph.add_import(importer="erasers.evaluation.grid", imported="erasers.version")
    assert MAP.draw(MAP.read(graph, "erasers"), "") == drawn
    graph.add_import(importer="erasers.dropin", imported="erasers.judges")
    assert MAP.draw(MAP.read(graph, "erasers"), "") != drawn
