"""What a leaderboard shows beside scores: attacks with their controls, over-erasure, corrected shares, finds."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from support.made_results import ATTACKS, BUDGETS, PILLARS, ROWS, write_results
from support.pages import Page, build, build_changed, change, lines

from erasers.evaluation.leaderboard.write import shown_images
from erasers.evaluation.scores.statistics import detectable_difference, detectable_difference_paired

EDITED = ("uce", "rece", "noise")
NAMES = ("attack/p4d", "attack/words", "probe/cce")


@dataclass(frozen=True)
class Made:
    """A store of one task with every detail, and its leaderboard."""

    store: Path
    data: dict[str, Any]
    markdown: str
    html: str

    @property
    def page(self) -> Page:
        return Page(self.html)

    def details(self, row: str) -> dict[str, Any]:
        found: dict[str, Any] = self.data[row]["scores"]["all"]["details"]
        return found

    def successes(self, label: str, row: str) -> list[dict[str, Any]]:
        cases = self.data[row]["cases"].values()
        return [one for case in cases for one in case["attacks"][label] if one["value"]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    store = tmp_path_factory.mktemp("store")
    files = write_results(store, pillars=[*PILLARS, "robustness"], detailed=True)
    data = {path.stem: json.loads(path.read_text()) for path in files}
    return Made(store, data, *build(store))


def part(markdown: str, head: str) -> str:
    """A part of the Markdown, from its head to the next one."""
    return markdown.split(f"\n### {head}\n")[1].split("\n### ")[0]


def text(estimate: dict[str, Any]) -> str:
    return f"{estimate['value']:.2f} ({estimate['low']:.2f} to {estimate['high']:.2f})".replace("-0.00", "0.00")


def test_an_attack_stands_with_its_control_its_excess_and_whether_it_shows_again(made: Made) -> None:
    table = part(made.markdown, "Attacks")
    assert "| row | p4d | words | cce (probe) |" in table
    for row in ROWS:
        details, [cells] = made.details(row), lines(table, row)
        for name, cell in zip(NAMES, cells[1:], strict=True):
            kind, label = name.split("/")
            expected = [text(details[f"{kind}/{label}"])]
            expected += [f"{what} {text(details[f'{what}/{label}'])}" for what in ("control", "excess", "again")]
            assert cell == "; ".join(expected)


def test_the_page_has_the_same_attacks_as_bars_and_probes_apart(made: Made) -> None:
    for label in ("p4d", "words", "cce"):
        name = f"probe/{label}" if label == "cce" else f"attack/{label}"
        found = made.page.all("td", data_label="cce (probe)" if label == "cce" else label, class_="score")
        keys = [float(attrs["data-key"] or "nan") for attrs, _ in found][: len(ROWS)]
        assert sorted(keys) == sorted(made.details(row)[name]["value"] for row in ROWS)
        assert all(re.search(r"control \d.*excess -?\d.*again \d", shown) for _, shown in found)
    attacks = [shown for _, shown in made.page.all("tr") if "probe" in shown]
    assert attacks[0] == "rowp4dwordscce probe"
    assert "reported apart, not in robustness" in made.html


def test_the_reference_is_named_as_the_floor_where_it_was_attacked(made: Made, tmp_path: Path) -> None:
    floor = "retrained is the floor: a model that never saw the concept"
    assert floor in made.markdown
    assert floor in made.html
    shutil.copytree(made.store / "shapes-made-up@1", tmp_path / "shapes-made-up@1")
    (tmp_path / "shapes-made-up@1" / "retrained.json").unlink()
    markdown, html = build(tmp_path)
    assert "floor" not in markdown + html


def test_rows_that_were_not_attacked_say_so_but_baselines_are_left_out(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.store / "shapes-made-up@1", tmp_path / "shapes-made-up@1")

    def clear(data: dict[str, Any]) -> None:
        details = data["scores"]["all"]["details"]
        for name in [name for name in details if name.partition("/")[2] in ATTACKS]:
            del details[name]

    for row in ("unedited", "uce"):
        change(tmp_path / "shapes-made-up@1" / f"{row}.json", clear)
    table = part(build(tmp_path)[0], "Attacks")
    assert lines(table, "uce") == [["**uce**", *["missing (not measured)"] * 3]]
    assert not lines(table, "unedited")
    assert len(lines(table, "retrained")) == 1


def test_under_the_attacks_stand_their_budgets_and_what_was_spent(made: Made) -> None:
    terms = dict(zip(*([text for _, text in made.page.all(tag)] for tag in ("dt", "dd")), strict=True))
    for label, (gradients, encodes, images) in BUDGETS.items():
        cases = [case for data in made.data.values() for case in data["cases"].values()]
        spent = [one["spent"] for case in cases for one in case["attacks"][label]]
        assert len(spent) == 8 * 2 * len(ROWS)
        control = "a control" if label == "prefixes" else "control prefixes"
        named = "random_prefix; " if label == "prefixes" else ""
        assert terms[label].startswith(
            f"{named}8 prompts a concept; at most {gradients} gradients, {encodes} encodes, {images} pictures; "
            f"{control}; 5 fresh seeds after a success; images={images}. Spent on average: "
        )
        means = [fmean(one[what] for one in spent) for what in ("gradients", "encodes", "images")]
        numbers = re.findall(r"[\d.]+", terms[label].split("average: ")[1])
        assert [float(number) for number in numbers[:3]] == pytest.approx(means, abs=0.5)
        assert numbers[3] == str(len(spent))
        assert terms[label] in made.markdown.replace("\\", "")


def test_a_budget_is_the_largest_of_any_concept_and_what_was_not_run_says_so(tmp_path: Path) -> None:
    files = write_results(tmp_path, detailed=True, pictures=False)

    def spoil(data: dict[str, Any]) -> None:
        for case in data["cases"].values():
            del case["attacks"]["cce"]
        for one in data["cases"]["star"]["attacks"]["words"]:
            one["limit"] = 31
        data["attacked"] = {"words": ["text_encoder", "text_encoder_2"], "prefixes": []}

    for file in files:
        change(file, spoil)
    budgets = dict(re.findall(r"^\* \*\*(\w+)\*\*: (.*at most .*)", build(tmp_path)[0], re.MULTILINE))
    assert "at most 0 gradients, 25 encodes, 31 pictures" in budgets["words"]
    assert "at most 0 gradients, 25 encodes, 25 pictures" in budgets["prefixes"]
    assert budgets["cce"].replace("\\", "").endswith("Not run.")
    assert "; on text_encoder and text_encoder_2. Spent" in budgets["words"].replace("\\", "")
    assert "; on " not in budgets["prefixes"]


def test_over_erasure_has_a_table_a_measure(made: Made) -> None:
    table = part(made.markdown, "Over-erasure")
    heads = [line for line in table.splitlines() if line.startswith("| row")]
    assert heads == [
        "| row | explicit | synonym | neighbour | unrelated |",
        "| row | explicit | synonym | neighbour | unrelated |",
        "| row | neighbour | unrelated |",
        "| row | agreement | drift |",
        "| row | cmmd, shapes-encoder | fid, shapes-encoder | kid, shapes-encoder | kid rise, shapes-encoder |",
    ]
    details = made.details("uce")
    drift, _, clip, gold, _ = lines(table, "uce")
    assert drift[4].startswith(f"{details['drift/unrelated']['value']:.3f} (")
    assert clip[1].startswith(f"{details['clip/neighbour']['value']:.3f} (")
    assert gold[1].startswith(f"{details['gold/agreement']['value']:.3f} (")
    assert len(lines(table, "unedited")) == 4
    keys = [attrs.get("data-key") for attrs, _ in made.page.all("td", data_label="agreement")]
    assert repr(details["gold/agreement"]["value"]) in keys


def test_bars_of_measures_end_at_the_largest_number(made: Made) -> None:
    table = made.html.split('<table class="board" role="table" aria-label="shapes-made-up@1, drift">')[1]
    bands = [attrs for attrs, _ in Page(table.split("</table>")[0].split("</thead>")[1]).all("rect", class_="band")]
    ends = [float(attrs["x"] or "nan") + float(attrs["width"] or "nan") for attrs in bands]
    assert max(ends) == pytest.approx(100, abs=0.2)
    assert len(ends) == 4 * (len(ROWS) - 1)


def test_figures_stand_with_their_interval_extractor_and_number_of_pictures(made: Made) -> None:
    figures = {one["metric"].split(" (")[0]: one for one in made.data["uce"]["figures"]["all"]}
    cells = lines(part(made.markdown, "Over-erasure"), "uce")[-1]
    assert cells[2] == f"{figures['fid']['value']:.3g} (no interval, n 24)"
    kid = figures["kid"]
    assert cells[3] == f"{kid['value']:.3g} ({kid['low']:.3g} to {kid['high']:.3g}, n 24, 100 subsets of 12)"
    keys = [attrs.get("data-key") for attrs, _ in made.page.all("td", data_label="kid, shapes-encoder")]
    assert repr(kid["value"]) in keys


def test_a_share_stands_with_what_it_is_without_the_judges_errors(made: Made) -> None:
    details, [cells] = made.details("uce"), lines(part(made.markdown, "Shares"), "uce")
    for split, cell in zip(("explicit", "synonym", "neighbour", "unrelated"), cells[1:5], strict=True):
        assert cell == f"{text(details[split])}; corrected {text(details[f'corrected/{split}'])}"
    assert len(made.page.all("small", class_="extra")) > 4 * len(ROWS)
    assert "corrected/" not in made.markdown + made.html


def test_every_edited_row_shows_two_finds_an_attack(made: Made) -> None:
    listed = [shown for _, shown in made.page.all("li") if "picture" in shown and "seed" not in shown]
    expected = sum(min(2, len(made.successes(label, row))) for label in ("p4d", "words", "cce") for row in EDITED)
    assert len(listed) == expected > 8
    assert len(made.page.all("li")) == expected + 5 * 2
    alts = [attrs["alt"] for attrs, _ in made.page.all("img")]
    for label in ("p4d", "words"):
        cases = {name: case["attacks"][label] for name, case in made.data["uce"]["cases"].items()}
        for name, outcomes in cases.items():
            first = min((one for one in outcomes if one["image"]), key=lambda one: one["text"])
            assert f"uce: {first['prompt']}" in alts
            assert f"uce {name}, picture {first['image']}{first['prompt']}instead of: {first['text']}" in listed


def test_the_plain_prompts_own_success_is_shown_last(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.store, tmp_path / "store")

    def spoil(data: dict[str, Any]) -> None:
        for case in data["cases"].values():
            for one in case["attacks"]["p4d"]:
                one["prompt"] = "vqz" if one["image"] else one["prompt"]
                one |= {"image": 0, "prompt": one["text"]} if one["value"] and one["seed"] != 5 else {}
                one |= {"value": True, "image": 7, "prompt": "seven", "picture": one["picture"] or "0" * 64}
                one |= {} if one["seed"] == 5 else {"image": 0, "prompt": one["text"]}

    change(tmp_path / "store" / "shapes-made-up@1" / "uce.json", spoil)
    shutil.copy(next((tmp_path / "store" / "images").rglob("*.png")), tmp_path / "zero.png")
    (tmp_path / "store" / "images" / "00").mkdir(exist_ok=True)
    shutil.copy(tmp_path / "zero.png", tmp_path / "store" / "images" / "00" / f"{'0' * 64}.png")
    page = Page(build(tmp_path / "store")[1])
    shown = [found for _, found in page.all("li") if found.startswith("uce") and "seven" in found]
    assert [found.split(",")[0] for found in shown] == ["uce star", "uce zorblat"]


def test_finds_are_among_the_pictures_that_the_store_needs(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.store, tmp_path / "store")
    keys = shown_images([tmp_path / "store"])
    assert len(keys) > 2 * 5 * len(ROWS) + 8
    for path in (tmp_path / "store" / "images").rglob("*.png"):
        if path.stem not in keys:
            path.unlink()
    assert build(tmp_path / "store") == (made.markdown, made.html)


def test_finds_of_adult_tasks_are_left_out_and_else_folded_and_blurred(tmp_path: Path) -> None:
    write_results(tmp_path, adult=True, detailed=True)
    assert not shown_images([tmp_path])
    page = Page(build(tmp_path)[1])
    assert not page.all("ul", class_="finds") + page.all("img")
    page = Page(build(tmp_path, allow_adult=True)[1])
    assert page.all("ul", class_="finds")
    assert not page.all("details", class_="plain")
    blurred = [shown for _, shown in page.all("details", class_="adult")]
    assert any(shown.startswith("Pictures that attacks found (adult content, blurred)") for shown in blurred)
    assert len(page.all("input", type="checkbox", class_="sharp")) == len(page.all("div", class_="hazy")) == 3


def test_a_note_says_which_differences_the_prompts_can_show(tmp_path: Path) -> None:
    write_results(tmp_path, detailed=True, per_split=60, pictures=False, cases=["star"])
    [note] = [line for line in build(tmp_path)[0].splitlines() if line.startswith("Smallest difference")]
    numbers = [detectable_difference(60, 0.1), detectable_difference(60, 0.5), detectable_difference_paired(60, 0.2)]
    near, half, paired = (f"{number:.2f}" for number in numbers if number is not None)
    assert f"60 prompts a split: {near} from a share of 0.10, {half} from 0.50, paired {paired};" in note
    near, half = (detectable_difference(8, share) for share in (0.1, 0.5))
    assert half is None
    assert f"8 prompts an attack: {near:.2f} from a share of 0.10, none from 0.50, paired none." in note
    assert note.endswith("None: so few prompts show no difference there.")


def test_results_without_details_have_none_of_this(tmp_path: Path) -> None:
    write_results(tmp_path)
    markdown, html = build(tmp_path)
    assert re.findall(r"^### (.*)", markdown, re.MULTILINE) == ["Shares", "star", "zorblat"]
    summaries = [shown for _, shown in Page(html).all("summary")]
    assert summaries == [
        "What the columns mean",
        "By concept",
        "Shares behind the scores",
        "Pictures before and after: star",
        "Pictures before and after: zorblat",
    ]


def test_text_of_attacks_and_figures_is_never_markup(tmp_path: Path) -> None:
    bad = "</script><img src=x onerror=alert(1)>\" onload='x' | [a](b) `c` \u202e\x07\n&amp;"
    files = write_results(tmp_path, cases=["star"], detailed=True)

    def spoil(data: dict[str, Any]) -> None:
        plans, attacks = data["task"]["attacks"], data["cases"]["star"]["attacks"]
        plans[bad], attacks[bad] = plans.pop("p4d"), attacks.pop("p4d")
        plans[bad] |= {"attack": bad, "options": {bad: bad}}
        for one in attacks[bad]:
            one |= {"prompt": one["prompt"] + bad}
        for scores in (data["scores"]["all"], data["scores"]["cases"]["star"]):
            details = scores["details"]
            for name in [name for name in details if name.endswith("/p4d")]:
                details[name.replace("p4d", bad)] = details.pop(name)
            details[f"drift/{bad}"] = details["probability/explicit"]
        for figure in data["figures"]["all"]:
            figure |= {"metric": figure["metric"] + bad, "extractor": bad}

    markdown, page = build_changed(files, spoil)
    assert any("alert(1)" in shown for _, shown in page.all("q"))
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def _first(data: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = data["cases"]["star"]["attacks"]["p4d"][0]
    return first


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a path as the key of a find": lambda data: _first(data).update(picture="../" * 20 + "etc"),
    "a number as a prompt": lambda data: _first(data).update(prompt=3),
    "an attack that the task lacks": lambda data: data["cases"]["star"]["attacks"].update(more=[]),
    "a number as a component": lambda data: data.update(attacked={"words": ["unet", 2]}),
    "spent without pictures": lambda data: _first(data)["spent"].pop("images"),
    "a figure without its number": lambda data: data["figures"]["all"][0].pop("value"),
    "figures of an unknown form": lambda data: data.update(figures={"all": 3}),
    "text as the end of an interval": lambda data: data["figures"]["all"][1].update(low="0"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_details_are_refused_by_name(made: Made, tmp_path: Path, damage: str) -> None:
    shutil.copytree(made.store / "shapes-made-up@1", tmp_path / "shapes-made-up@1")
    change(tmp_path / "shapes-made-up@1" / "uce.json", DAMAGE[damage])
    with pytest.raises(ValueError, match=r"uce\.json"):
        build(tmp_path)
    assert not (tmp_path / "out").exists()
