"""The leaderboard: what it shows, what it refuses, and that the page stands alone."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.made_results import PILLARS, write_results
from support.pages import Page, build, build_changed, change, lines

from erasers.evaluation.leaderboard.views import ranks
from erasers.evaluation.leaderboard.write import shown_images, write_leaderboard
from erasers.evaluation.scores.results import read_tasks


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Both files of a store with two tasks."""
    store = tmp_path_factory.mktemp("store")
    write_results(store)
    write_results(
        store, name="shapes-attacked", cases=["heart"], pillars=[*PILLARS, "robustness"], unscored=["neighbour"]
    )
    return build(store)


def test_the_same_results_give_the_same_bytes_wherever_they_lie_and_in_any_order(tmp_path: Path) -> None:
    made = []
    for name, step in (("one", 1), ("two", -1)):
        files = write_results(tmp_path / name)[::step]
        write_leaderboard([*files, files[0]], tmp_path / name / "out")
        made.append([(tmp_path / name / "out" / f"leaderboard.{kind}").read_bytes() for kind in ("md", "html")])
    assert made[0] == made[1]


def test_rows_come_with_row_0_first_then_references_then_by_rank(shared: tuple[str, str]) -> None:
    task = shared[0].split("## shapes-made-up")[1].split("###")[0]
    rows = [line.split(" | ")[:2] for line in task.splitlines() if "**" in line]
    assert rows[0][1].startswith("**unedited** (row 0)")
    assert rows[1][1].startswith("**retrained** (reference)")
    assert [rank.strip("| ") for rank, _ in rows] == ["–", "–", "=1", "=1", "3"]
    assert [name.strip("*") for _, name in rows[2:]] == ["uce", "rece", "noise"]


def test_a_difference_that_is_one_breaks_the_tie(tmp_path: Path) -> None:
    rows = {"unedited": (1.0, 1.0), "good": (0.0, 1.0), "half": (0.5, 1.0), "bad": (0.9, 0.3)}
    write_results(tmp_path, rows=rows, per_split=60, pictures=False)
    markdown, _ = build(tmp_path)
    assert [lines(markdown, name)[0][0] for name in ("good", "half", "bad")] == ["1", "2", "3"]


def test_every_score_stands_with_its_interval_in_text_and_as_a_bar(shared: tuple[str, str]) -> None:
    assert all(
        re.fullmatch(r"[01]\.\d\d \([01]\.\d\d to [01]\.\d\d\)", cell) for cell in lines(shared[0], "uce")[-4][2:6]
    )
    page = Page(shared[1])
    cells = [attrs for name in ("score", "score overall") for attrs, _ in page.all("td", class_=name)]
    bars = [bar for bar in page.all("svg", role="img") if bar[0].get("class") != "plot"]
    titles = [text for _, text in page.all("title") if "95 % interval" in text]
    assert len(cells) == len(bars) == len(titles) > 50
    assert all(
        re.match(r"[01]\.\d\d, 95 % interval [01]\.\d\d to [01]\.\d\d; \d+ pictures of \d+ prompts", t) for t in titles
    )
    for attrs, _ in page.all("rect", class_="band"):
        assert 0 <= float(attrs["x"] or -1) <= float(attrs["x"] or -1) + float(attrs["width"] or -1) <= 100.5


def test_what_is_missing_says_why_and_is_no_number(shared: tuple[str, str]) -> None:
    task = shared[0].split("## shapes-attacked")[1].split("## shapes-made-up")[0]
    uce = lines(task, "uce")[0]
    assert uce[0] == "–"
    assert uce[2].replace("\\", "") == "missing (needs neighbours, robustness)"
    assert uce[4] == "missing (no attack was run)"
    missing = Page(shared[1]).all("td", class_="missing", data_label="robustness")
    assert len(missing) == 10
    for attrs, text in missing:
        assert "data-key" not in attrs
        assert attrs["title"] == "no attack was run"
        assert text == "missing no attack was run"


def test_costs_are_means_over_the_cases_and_absent_without_a_patch(tmp_path: Path) -> None:
    files = write_results(tmp_path, pictures=False)
    change(
        tmp_path / files[0].parent / "uce.json",
        lambda d: d["cases"]["star"]["patch"].update(bytes=655, edit_seconds=119.75),
    )
    markdown, page = build(tmp_path)
    assert lines(markdown, "uce")[0][-2:] == ["6.5 kB", "60 s"]
    assert lines(markdown, "unedited")[0][-2:] == ["–", "–"]
    keys = [attrs.get("data-key") for attrs, _ in Page(page).all("td", data_label="patch")]
    assert keys[:5] == [None, None, "6500.0", "12345.0", "12345.0"]


def test_options_stand_apart_from_the_tables(tmp_path: Path) -> None:
    files = {path.stem: path for path in write_results(tmp_path, pictures=False)}
    change(files["uce"], lambda data: data["row"].update(options={"ridge": 0.5, "anchors": ["a", "b"]}))
    markdown, html = build(tmp_path)
    assert markdown.count("ridge=0.5") == 1
    assert "* **uce**: anchors=\\['a', 'b'\\], ridge=0.5" in markdown
    assert [text for _, text in Page(html).all("dd")][-1] == "anchors=['a', 'b'], ridge=0.5"


def test_the_page_stands_alone(shared: tuple[str, str]) -> None:
    page = Page(shared[1])
    for _, attrs, _ in page.elements:
        assert not {"style", "srcset", "action", "background"} & set(attrs)
        assert not [name for name in attrs if name.startswith("on")]
        assert (attrs.get("src") or "data:").startswith("data:image/png;base64,") or "src" not in attrs
        assert (attrs.get("href") or "#").startswith("#")
    assert not page.all("link") + page.all("iframe") + page.all("base")
    assert not re.search(r"@import|url\(|https?:", shared[1])


def test_the_policy_allows_this_script_and_style_alone(shared: tuple[str, str]) -> None:
    page = Page(shared[1])
    policy = page.all("meta", http_equiv="Content-Security-Policy")[0][0]["content"] or ""
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("script", "style"):
        [(attrs, text)] = page.all(tag)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert not attrs
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_tables_keep_their_roles_and_their_heads_are_buttons(shared: tuple[str, str]) -> None:
    page = Page(shared[1])
    boards, heads = page.all("table", class_="board"), page.all("th", role="columnheader", aria_sort="none")
    assert len(boards) == 7
    assert len(heads) == len(page.all("button", type="button")) > 40
    assert all(attrs["role"] == "table" and attrs["aria-label"] for attrs, _ in boards)
    assert {attrs["role"] for tag in ("td", "th") for attrs, _ in page.all(tag) if "role" in attrs} == {
        "cell",
        "columnheader",
        "rowheader",
    }
    ids = [attrs["id"] for _, attrs, _ in page.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert [text for _, text in page.all("option")] == ["all tasks", "shapes-attacked@1", "shapes-made-up@1"]


def test_text_from_files_is_never_markup(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script>\" onload='x' <img src=x> | [a](b) `c` \u202e\x07\n&amp;"
    files = write_results(tmp_path, name="hostile", cases=["star"])

    def spoil(data: dict[str, Any]) -> None:
        data["task"] |= {"name": bad, "model": bad}
        data["judge"]["name"] = bad
        data["row"] |= {"options": {bad: bad}, "name": data["row"]["name"] + bad}
        data["cases"] = {bad: data["cases"].pop("star")}
        data["scores"]["cases"] = {bad: data["scores"]["cases"].pop("star")}
        data["scores"]["all"]["details"][bad] = data["scores"]["all"]["details"]["explicit"]
        data["scores"]["all"]["missing"] = {"robustness": bad}
        data["task"]["scheme"]["pillars"].append("robustness")
        for sample in data["cases"][bad]["samples"]:
            sample["text"] += bad

    markdown, page = build_changed(files, spoil)
    assert any("alert(1)" in text for _, text in page.all("h2"))
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in tables}) == 3


def test_pictures_of_all_rows_stand_beside_the_unedited_ones(shared: tuple[str, str]) -> None:
    pictures = Page(shared[1]).all("img")
    assert len(pictures) == 3 * 5 * 5
    content = base64.b64decode((pictures[0][0]["src"] or "").split(",")[1])
    assert content.startswith(b"\x89PNG")
    alts = [attrs["alt"] for attrs, _ in pictures]
    assert "uce: a neighbour picture 00 of something; kept" in alts
    assert "noise: a unrelated picture 00 of something; lost" in alts
    assert "unedited: a explicit picture 00 of star; as asked" in alts
    assert "noise: a explicit picture 00 of star; gone" in alts
    assert "uce: a neighbour picture 00 of something; not scored" in alts


def test_the_pictures_shown_are_all_the_store_needs(tmp_path: Path) -> None:
    write_results(tmp_path)
    before, keys = build(tmp_path), shown_images([tmp_path])
    assert len(keys) == 2 * 5 * 5
    for path in (tmp_path / "images").rglob("*.png"):
        if path.stem not in keys:
            path.unlink()
    assert build(tmp_path) == before


def test_large_pictures_are_shrunk_and_absent_ones_left_out(tmp_path: Path) -> None:
    write_results(tmp_path, cases=["star"])
    first, second, *_ = shown_images([tmp_path])
    Image.new("RGB", (600, 300)).save(tmp_path / "images" / first[:2] / f"{first}.png")
    (tmp_path / "images" / second[:2] / f"{second}.png").unlink()
    page = Page(build(tmp_path)[1])
    assert len(page.all("img")) == 24
    assert len([text for _, text in page.all("span", class_="missing") if text == "no picture"]) == 1
    contents = [base64.b64decode((attrs["src"] or "").split(",")[1]) for attrs, _ in page.all("img")]
    widths = {int.from_bytes(content[16:20], "big") for content in contents}
    assert widths == {32, 256}


def test_without_a_store_there_is_a_note(tmp_path: Path) -> None:
    write_results(tmp_path, pictures=False)
    markdown, page = build(tmp_path)
    assert not Page(page).all("img")
    assert "No pictures: none are in the store." in markdown
    assert "No pictures: none are in the store." in page


def test_pictures_of_adult_tasks_are_left_out_and_else_folded_and_blurred(tmp_path: Path) -> None:
    write_results(tmp_path, adult=True)
    assert not shown_images([tmp_path])
    markdown, html = build(tmp_path)
    assert not Page(html).all("img")
    assert "Adult content." in markdown
    html = build(tmp_path, allow_adult=True)[1]
    page = Page(html)
    assert page.all("img")
    assert not page.all("details", class_="plain")
    assert all("open" not in attrs for attrs, _ in page.all("details", class_="adult"))
    assert len(page.all("input", type="checkbox", class_="sharp")) == len(page.all("details", class_="adult")) == 2
    assert ".adult img { filter: blur(" in html


def test_shown_prompts_are_drawn_as_asked_by_the_unedited_model(tmp_path: Path) -> None:
    rows = {"unedited": (0.5, 0.5), "uce": (0.1, 0.9)}
    write_results(tmp_path, rows=rows)
    alts = [attrs["alt"] or "" for attrs, _ in Page(build(tmp_path)[1]).all("img")]
    assert {alt.split("; ")[1] for alt in alts if alt.startswith("unedited")} == {"as asked"}


def test_rows_that_lack_a_case_say_so_and_have_no_rank(tmp_path: Path) -> None:
    files = {path.stem: path for path in write_results(tmp_path)}
    for name in ("retrained", "uce"):
        change(files[name], lambda data: [part.pop("star") for part in (data["cases"], data["scores"]["cases"])])
    markdown, html = build(tmp_path)
    assert lines(markdown, "retrained")[0][1] == "**retrained** (reference), only zorblat"
    assert lines(markdown, "uce")[0][:2] == ["–", "**uce**, only zorblat"]
    assert [len(lines(markdown, name)) for name in ("retrained", "uce", "rece")] == [3, 3, 4]
    assert [lines(markdown, name)[0][0] for name in ("rece", "noise")] == ["1", "2"]
    assert len(Page(html).all("img")) == 5 * (3 + 5)


def test_a_task_that_was_cut_short_is_a_task_of_its_own(tmp_path: Path) -> None:
    for name in ("whole", "short"):
        write_results(tmp_path / name, pictures=False)
    for path in (tmp_path / "short").rglob("*.json"):
        change(path, lambda data: data["task"].update(limit=3))
    write_leaderboard([tmp_path / "short", tmp_path / "whole"], tmp_path)
    heads = re.findall(r"^## (.*)", (tmp_path / "leaderboard.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heads == ["shapes-made-up\\@1", "shapes-made-up\\@1-limit3"]


def test_scores_that_the_files_cannot_compare_have_no_rank(tmp_path: Path) -> None:
    files = write_results(tmp_path, pictures=False)
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3, "prompts": 3}
    for file in files:
        change(file, lambda data: data["task"].update(scheme={"pillars": ["erasure", "utility"], "kappa": 0.01}))
        change(file, lambda data: data["scores"]["all"].update(overall=estimate))
    markdown, _ = build(tmp_path)
    assert lines(markdown, "uce")[0][0] == "–"
    assert "No ranks: the files do not hold" in markdown


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "format 2": lambda data: data.update(format=2),
    "true as format": lambda data: data.update(format=True),
    "no task": lambda data: data.pop("task"),
    "a version that is text": lambda data: data["task"].update(version="1"),
    "an unknown pillar": lambda data: data["task"].update(scheme={"pillars": ["beauty"]}),
    "an unknown key of the scheme": lambda data: data["task"]["scheme"].update(beauty=1),
    "an unknown kind": lambda data: data["row"].update(kind="winner"),
    "no cases": lambda data: data.update(cases={}),
    "no scores of a case": lambda data: data["scores"]["cases"].pop("star"),
    "a value outside its interval": lambda data: data["scores"]["all"]["pillars"]["erasure"].update(value=2.0),
    "an infinite interval": lambda data: data["scores"]["all"]["pillars"]["erasure"].update(high=1e999),
    "a value that is true": lambda data: data["scores"]["all"]["pillars"]["erasure"].update(value=True),
    "a reason that is a number": lambda data: data["scores"]["all"]["missing"].update(utility=3),
    "a split nobody knows": lambda data: data["cases"]["star"]["samples"][0].update(split="easy"),
    "a verdict of 2": lambda data: data["cases"]["star"]["samples"][0].update(value=2),
    "a path as the key of an image": lambda data: data["cases"]["star"]["samples"][0].update(image="../" * 20 + "etc"),
    "half a character": lambda data: data["row"].update(name="\ud800"),
    "a negative cost": lambda data: data["cases"]["star"]["patch"].update(bytes=-1),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task folder that nothing is wrong with, to be copied."""
    store = tmp_path_factory.mktemp("store")
    files = write_results(store, pictures=False, cases=["star"])
    write_leaderboard(files, store)
    return files[0].parent


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_results_are_refused_by_name(tmp_path: Path, whole: Path, damage: str) -> None:
    shutil.copytree(whole, tmp_path / whole.name)
    change(tmp_path / whole.name / "uce.json", DAMAGE[damage])
    with pytest.raises(ValueError, match=r"uce\.json"):
        build(tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": NaN}'])
def test_files_that_are_no_results_are_refused_by_name(tmp_path: Path, whole: Path, content: bytes) -> None:
    (tmp_path / "wrong.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"wrong\.json"):
        write_leaderboard([whole, tmp_path / "wrong.json"], tmp_path / "out")


def test_results_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    files = {path.stem: path for path in write_results(tmp_path, pictures=False)}
    original = files["uce"].read_bytes()
    for edit, what in (
        (lambda data: data.update(model="other"), "one model"),
        (lambda data: data["judge"].update(name="other"), "one judge"),
        (lambda data: data["task"].update(steps=3), "one task"),
        (lambda data: data["row"].update(name="rece"), "names of their own"),
        (lambda data: data["row"].update(kind="unedited"), "one unedited row"),
        (lambda data: [part.update(moon=part["star"]) for part in (data["cases"], data["scores"]["cases"])], "moon"),
        (lambda data: data["cases"]["star"]["samples"].pop(), "cannot compare"),
    ):
        change(files["uce"], edit)
        with pytest.raises(ValueError, match=what) as error:
            build(tmp_path)
        assert "uce.json" in str(error.value)
        files["uce"].write_bytes(original)
    files["unedited"].unlink()
    with pytest.raises(ValueError, match="expected one unedited row"):
        build(tmp_path)


def test_no_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected result files"):
        build(tmp_path)


def test_a_damaged_picture_is_refused_by_name(tmp_path: Path) -> None:
    write_results(tmp_path)
    key = shown_images([tmp_path])[0]
    (tmp_path / "images" / key[:2] / f"{key}.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=key):
        build(tmp_path)


def test_rows_with_samples_of_utility_are_ranked(tmp_path: Path) -> None:
    """Such a sample counts once, by its CLIP score, and not as a verdict, too."""

    def add(data: dict[str, Any]) -> None:
        for case in data["cases"].values():
            facts = {"split": "utility", "text": "a lake", "seed": 3, "wants": {}, "value": None, "probability": None}
            case["samples"].append({**facts, "image": "a" * 64, "clip": 30.0})

    for file in write_results(tmp_path):
        change(file, add)
    [rows] = read_tasks([tmp_path]).values()
    assert [(one.seed, one.value) for one in rows[0].records() if one.split == "utility"] == [(3, 30.0)] * 2
    assert ranks(rows)["noise"] == 3
