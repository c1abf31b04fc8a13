"""Methods in the order in which they suit a wish."""

from __future__ import annotations

import json

import pytest

from erasers.evaluation.recommend.choosing import Wish, chosen, concept_like, left_out, nearest, score_of, unmeasured
from erasers.evaluation.recommend.measured import ALL, Figures, Many, Measured, Share, Table, tables, to_json
from erasers.models.families import FAMILIES


def share(value: float, width: float = 0.05) -> Share:
    return Share(value, value - width, value + width)


def figures(erasure: float, texts: float, probes: float, kept: float = 1.0) -> Figures:
    return Figures(share(erasure), share(texts), share(probes), "relearning", share(kept), share(kept), share(kept))


ROWS = [
    Measured("esd", {ALL: figures(0.9, 0.5, 0.2), "star": figures(0.6, 0.5, 0.4)}, 1000.0, 30.0),
    Measured("uce", {ALL: figures(0.9, 0.77, 0.1), "star": figures(0.9, 0.3, 0.4)}, 10.0, 0.1),
    Measured("itd-means", {ALL: figures(0.9, 0.9, 0.9), "star": figures(1.0, 0.9, 0.9)}, 10.0, None),
    Measured("esd+uce", {ALL: figures(0.95, 0.78, 0.5)}, 1010.0, 31.0),
]
TABLE = Table("made-up@1", "made-up", "UNet2DConditionModel", {"star": "object"}, ("star",), ROWS)


def names(**wish: object) -> list[str]:
    return [choice.row.name for choice in chosen(TABLE, Wish(**wish))]  # type: ignore[arg-type]


def test_the_order_follows_the_wish() -> None:
    assert names(kind="style") == ["itd-means", "esd+uce", "uce", "esd"]
    assert names(kind="style", training=False) == ["itd-means", "uce"]
    assert names(kind="style", many=10) == ["itd-means", "uce"]
    # Who has the weights takes hooks off.
    assert names(kind="style", white_box=True) == ["esd+uce", "esd", "uce"]
    # On the concept of a kind only rows with figures of it.
    assert names(kind="object") == ["itd-means", "esd", "uce"]
    assert concept_like(TABLE, "object") == "star"
    assert concept_like(TABLE, "unsafe") == ALL


def test_what_cannot_be_told_apart_is_level() -> None:
    first, second, third, last = chosen(TABLE, Wish("style"))
    assert not first.level
    assert [second.level, third.level, last.level] == [False, False, False]
    near = Measured("rece", {ALL: figures(0.9, 0.85, 0.1)}, 10.0, 0.1)
    order = chosen(Table("t@1", "m", "d", {}, (), [*ROWS, near]), Wish("style"))
    assert [(choice.row.name, choice.level) for choice in order[:2]] == [("itd-means", False), ("rece", True)]


def test_many_concepts_are_chosen_for_by_what_was_measured_of_many() -> None:
    many = [
        Many("uce", 1, share(1.0), share(1.0), 10.0, 0.1),
        Many("uce", 6, share(0.9), share(0.9), 60.0, 0.2),
        Many("dp", 6, share(0.95), share(0.9), 60.0, 0.2),
        Many("dp", 10, share(0.4), share(0.9), 100.0, 0.2),
        Many("esd", 6, share(1.0), share(1.0), 1000.0, 30.0),
        Many("itd-means", 6, share(0.2), share(1.0), 10.0, 1.0),
    ]
    table = Table("made-up@1", "made-up", "UNet2DConditionModel", {}, (), ROWS, many)

    def order(**wish: object) -> list[tuple[str, int, bool]]:
        choices = chosen(table, Wish(**wish))  # type: ignore[arg-type]
        return [(choice.row.name, choice.count, choice.level) for choice in choices]

    assert order(many=7) == [("dp", 6, False), ("uce", 6, True), ("itd-means", 6, False)]
    # The nearest that was measured, and never one alone.
    assert order(many=2) == order(many=6)
    assert order(many=100) == [("dp", 10, False)]
    assert unmeasured(["dp", "rece"], table, many=True) == ["rece"]
    assert order(many=7, white_box=True) == [("dp", 6, False), ("uce", 6, True)]
    assert {row.name for row in (choice.row for choice in chosen(table, Wish("style")))} == {row.name for row in ROWS}


def test_a_score_is_the_harmonic_mean_of_what_was_measured() -> None:
    whole = figures(0.5, 0.5, 0.25)
    assert score_of(whole, Wish()) == pytest.approx(5 / (2 + 2 + 3))
    assert score_of(whole, Wish(white_box=True)) == pytest.approx(5 / (2 + 4 + 3))
    assert score_of(figures(0.0, 0.5, 0.5), Wish()) == 0
    without = Figures(share(0.5), share(0.5), None, "", None, share(1.0), None)
    assert score_of(without, Wish()) == pytest.approx(3 / 5)
    # Missing is missing, never zero.
    assert score_of(without, Wish(white_box=True)) is None
    assert score_of(Figures(share(0.5), share(0.5)), Wish()) is None


def test_reasons_and_what_is_lacking() -> None:
    assert left_out("uce", Wish(white_box=True, training=False, many=5)) == ""
    assert "hooks" in left_out("uce+itd", Wish(white_box=True))
    assert left_out("esd+uce", Wish(training=False)) == "trains"
    assert "several concepts" in left_out("esd", Wish(many=2))
    assert unmeasured(["esd", "itd", "rece", "uce"], TABLE) == ["rece"]


def test_what_is_known_survives_its_file() -> None:
    known = tables()
    assert [table.model for table in known] == ["shapes", "shapes-sd3"]
    again = json.loads(to_json(known))
    assert again == json.loads(to_json(tables()))
    assert all(table.rows and set(table.tuned) <= set(table.kinds) for table in known)
    kinds = {family.denoiser: nearest(known, family).model for family in FAMILIES}
    assert kinds["UNet2DConditionModel"] == kinds["UNetMotionModel"] == kinds["PixArtTransformer2DModel"] == "shapes"
    assert kinds["SD3Transformer2DModel"] == kinds["FluxTransformer2DModel"] == "shapes-sd3"
