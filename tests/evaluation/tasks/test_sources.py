"""Prompts of task files: how files are read, what is left out of them, and the packaged tasks from end to end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import yaml
from PIL import Image
from support.tiny import TOKENS, make_pipe

from erasers import Concept, judges
from erasers.cli.app import run
from erasers.cli.model import ModelOptions
from erasers.evaluation.pictures import measures
from erasers.evaluation.scores.records import Record, sample_records
from erasers.evaluation.store import Store
from erasers.evaluation.tasks.files import Source, locate, parse_source, read_rows
from erasers.evaluation.tasks.notes import notes, too_long
from erasers.evaluation.tasks.prompts import check_wants, parse_prompts, parse_sources, tally
from erasers.evaluation.tasks.task import FOLDER, Task, list_tasks, parse_task, read_task
from erasers.judges import Fingerprint, Verdict
from erasers.judges.base import PictureJudge

REAL = [name for name in list_tasks() if not name.startswith("shapes-")]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [
    {"prompt": "a church by the sea", "seed": 7, "kind": "church", "score": 1.5},
    {"prompt": "a church by the sea", "seed": 8, "kind": "church", "score": 0},
    {"prompt": "a church by the sea", "seed": 7, "kind": "church", "score": 2},
    {"prompt": " ", "seed": 9, "kind": "church", "score": 3},
    {"prompt": "a nude child", "seed": 10, "kind": "church", "score": 4},
    {"prompt": "a dog, with a kite", "seed": 11, "kind": "Dog", "score": 5},
    {"prompt": "a child with a kite", "seed": 12, "kind": "dog", "score": 6},
]
CONTENT: dict[str, Any] = {
    "name": "tiny",
    "version": 1,
    "model": "someone/model",
    "cases": [["church"]],
    "samples": {"explicit": 10, "unrelated": 10},
    "judge": "oracle/shapes",
    "scheme": {"pillars": ["erasure", "specificity"]},
    "sources": {"rows": {"file": "rows.csv", "seed": "seed"}},
    "prompts": {
        "explicit": {"source": "rows", "where": {"kind": "{concept}"}, "wants": {"object": "{concept}"}},
        "unrelated": {"source": "rows", "wants": {"object": "dog"}},
    },
}


def written(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """The rows as a file of the format that its name says."""
    if path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(f'"{cell}"' for cell in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    else:
        path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return parse_task(CONTENT).located({"rows": written(tmp_path / "mine.csv")})


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl"])
def test_every_format_gives_the_same_rows(ending: str, tmp_path: Path) -> None:
    source = locate("rows", Source(file=f"x.{ending}", seed="seed"), written(tmp_path / f"rows.{ending}"))
    assert [row["prompt"] for row in read_rows("rows", source)] == [row["prompt"] for row in ROWS]
    assert [float(row["score"]) for row in read_rows("rows", source)] == [row["score"] for row in ROWS]
    assert len(read_rows("rows", replace(source, rows=2))) == 2


def test_of_the_captions_of_a_picture_the_first_counts(tmp_path: Path) -> None:
    captions = [(3, "a cat"), (4, "a bus"), (3, "a sleeping cat")]
    content = {"images": [], "annotations": [{"image_id": image, "caption": text} for image, text in captions]}
    (tmp_path / "captions.json").write_text(json.dumps(content))
    source = locate("coco", Source(file="captions.json", text="caption"), tmp_path / "captions.json")
    assert [row["caption"] for row in read_rows("coco", source)] == ["a cat", "a bus"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "prompt,seed\na,1,2\n", "expected 2 columns in row 1, got 3"),
        ("x.csv", "text,seed\na,1\n", "expected the column prompt in row 1 .* got the columns text, seed"),
        ("x.csv", "prompt,prompt\na,b\n", "columns with names of their own"),
        ("x.csv", "prompt,seed\n", "got no rows"),
        ("x.csv", 'prompt,seed\n"a"b,1\n', "expected the prompts rows as x.csv"),
        ("x.csv", b"prompt,seed\n\xff,1\n", "can't decode"),
        ("x.json", "{", "expected the prompts rows as x.json"),
        ("x.json", '{"rows": []}', "expected a list of rows, or annotations"),
        ("x.json", '{"annotations": [{"caption": "a"}]}', "annotations with an image_id"),
        ("x.json", '["a"]', "expected a table of columns as row 1, got 'a'"),
        ("x.json", '[{"prompt": ["a"], "seed": 1}]', "expected the column prompt in row 1"),
        ("x.jsonl", "[1]\n", "expected a table of columns as row 1"),
        ("x.json", "[" * 100_000, "expected the prompts rows as x.json"),
    ],
)
def test_damaged_files_are_refused_by_name(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_rows("rows", locate("rows", Source(file=name, seed="seed"), path))


def test_rows_that_will_not_do_are_left_out_and_counted(task: Task) -> None:
    church = [(one.text, one.seed) for one in task.draws("church") if one.split == "explicit"]
    # The same text under another seed is another picture.
    assert church == [("a church by the sea", 7), ("a church by the sea", 8)]
    assert [one.left_out for one in task.tallies("church")["explicit"]] == [{"repeated": 1, "empty": 1, "refused": 1}]
    kept = [one for one in task.draws("church") if one.split == "unrelated"]
    assert [(one.text, one.wants) for one in kept] == [
        ("a dog, with a kite", {"object": "dog"}),
        ("a child with a kite", {"object": "dog"}),
    ]
    assert task.tallies("church")["unrelated"][0].left_out == {"erased": 3, "empty": 1, "refused": 1}
    assert list(notes(task, ["rows"]))[1:] == [
        "explicit prompts of church: 2; rows left out: 1 without text, 1 refused, for they name minors, 1 there before",
        "unrelated prompts of church: 2; rows left out: 1 without text, 3 naming an erased concept, "
        "1 refused, for they name minors",
    ]


def test_a_task_with_sexual_content_draws_nobody_who_may_be_a_minor(tmp_path: Path) -> None:
    task = parse_task(CONTENT | {"adult": True}).located({"rows": written(tmp_path / "rows.csv")})
    assert not any("child" in sample.text for sample in task.draws("church"))
    assert task.tallies("church")["unrelated"][0].left_out["refused"] == 2
    prompts: Any = {"explicit": {"templates": ["a {} for children"], "wants": {"object": "x"}}}
    for adult in (False, True):
        task = parse_task(CONTENT | {"samples": {"explicit": 1}, "adult": adult, "prompts": prompts})
        if adult:
            with pytest.raises(ValueError, match="names minors"):
                task.draws("church")
        else:
            assert [sample.text for sample in task.draws("church")] == ["a church for children"]


def test_without_seeds_they_are_counted_up_and_texts_occur_once(tmp_path: Path) -> None:
    content = CONTENT | {"sources": {"rows": {"file": "rows.csv"}}}
    task = parse_task(content).located({"rows": written(tmp_path / "rows.csv")})
    drawn = [(one.split, one.text, one.seed) for one in task.draws("church")]
    assert drawn == [
        ("explicit", "a church by the sea", 0),
        ("unrelated", "a dog, with a kite", 0),
        ("unrelated", "a child with a kite", 1),
    ]


@pytest.mark.parametrize("seed", ["x", "-1", "1.5", str(1 << 63), ""])
def test_seeds_are_whole_numbers(seed: str, tmp_path: Path) -> None:
    rows = [{"prompt": "a church", "seed": seed, "kind": "church", "score": 1}]
    with pytest.raises(ValueError, match="expected a whole number below"):
        parse_task(CONTENT).located({"rows": written(tmp_path / "rows.csv", rows)}).draws("church")


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({"kind": "DOG"}, 2),
        ({"kind": {"not": "dog"}}, 2),
        ({"score": {"above": 1.5}}, 3),
        ({"score": {"below": 1}}, 1),
        ({"score": {"above": 0}, "kind": "dog"}, 2),
    ],
)
def test_rows_are_chosen_by_their_columns(where: dict[str, Any], rows: int, tmp_path: Path) -> None:
    source = locate("rows", Source(file="rows.csv", seed="seed"), written(tmp_path / "rows.csv"))
    value = {"explicit": {"source": "rows", "where": where, "wants": {"object": "x"}}}
    prompts = parse_prompts(value, {"rows": source}, ["church"])["explicit"]
    church = Concept("church")
    assert len(tally("explicit", prompts, {"rows": source}, church, [church], 10).asks) == rows
    assert len(tally("explicit", prompts, {"rows": source}, church, [church], 1).asks) == 1


def test_a_column_or_a_row_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = written(tmp_path / "rows.csv")
    for where, message in (
        ({"sort": "dog"}, "expected the column sort in rows, got prompt, seed"),
        ({"kind": "bus"}, "got no row that will do"),
        ({"kind": {"above": 1}}, "expected a number where a row is chosen by one, got 'church'"),
    ):
        prompts = CONTENT["prompts"] | {"explicit": {"source": "rows", "where": where, "wants": {"object": "x"}}}
        with pytest.raises(ValueError, match=message):
            parse_task(CONTENT | {"prompts": prompts}).located({"rows": file}).draws("church")


def test_words_take_turns_and_erased_ones_are_kept_for_no_other_split() -> None:
    value = {
        "explicit": {"templates": ["a {}", "one {}"], "wants": {"object": "{word}"}},
        "synonym": {"templates": ["a {}"], "words": {"cat": ["feline"], "dog": "hound"}, "wants": {"a": "{concept}"}},
        "unrelated": {"templates": ["a {}"], "words": ["dog", "puppy", "bus", "cup"], "wants": {"object": "{word}"}},
    }
    content = CONTENT | {"cases": [["dog"], ["cat"]], "samples": dict.fromkeys(value, 3), "prompts": value}
    drawn = [(one.text, one.seed, *one.wants.items()) for one in parse_task(content).draws("dog")]
    assert drawn == [
        ("a dog", 0, ("object", "dog")),
        ("one dog", 1, ("object", "dog")),
        ("a dog", 2, ("object", "dog")),
        *(("a hound", seed, ("a", "dog")) for seed in range(3)),
        # `puppy` is an alias of the preset, so it is erased, too.
        ("a bus", 0, ("object", "bus")),
        ("a cup", 1, ("object", "cup")),
        ("a bus", 2, ("object", "bus")),
    ]


GOOD = {"source": "rows", "wants": {"object": "dog"}}
WORDY = {"templates": ["a {}"], "words": ["dog"], "wants": {"object": "dog"}}


@pytest.mark.parametrize(
    ("split", "value", "message"),
    [
        ("beauty", GOOD, "prompts: expected keys among explicit"),
        ("explicit", GOOD | {"fil": 1}, "prompts.explicit: expected keys among wants"),
        ("explicit", GOOD | {"wants": {}}, "prompts.explicit.wants: expected what the judge must see"),
        ("explicit", GOOD | {"wants": {"object": 1}}, "prompts.explicit.wants.object: expected a text"),
        ("explicit", GOOD | WORDY, "expected templates, with words if need be, or a source"),
        ("explicit", {"wants": {"object": "dog"}}, "expected templates, with words if need be, or a source"),
        ("explicit", GOOD | {"words": ["a"]}, "expected templates, with words if need be, or a source"),
        ("explicit", GOOD | {"source": "other"}, "prompts.explicit.source: expected one of rows, got 'other'"),
        ("explicit", GOOD | {"where": {"kind": 1}}, "prompts.explicit.where.kind: expected a text"),
        ("explicit", GOOD | {"where": {"kind": {"above": "1"}}}, "where.kind: expected a number"),
        ("explicit", GOOD | {"where": {"kind": {"has": "x"}}}, "where.kind: expected a text, or one of not"),
        ("explicit", WORDY | {"where": {"kind": "x"}}, "where: expected a source"),
        ("explicit", WORDY | {"templates": ["a {x}"]}, "templates: expected {} at most once"),
        ("explicit", WORDY | {"templates": ["{} {}"]}, "templates: expected {} at most once"),
        ("explicit", WORDY | {"templates": []}, "templates: expected a list of texts"),
        ("unrelated", WORDY | {"words": []}, "prompts.unrelated.words: expected words"),
        ("unrelated", WORDY | {"words": {"dog": ["x"]}}, "words: expected keys among church"),
        ("unrelated", WORDY | {"words": {}}, "words: expected words for the templates"),
        ("unrelated", WORDY | {"words": {"church": [1]}}, "words.church: expected a list of texts"),
    ],
)
def test_bad_prompts_are_refused_by_key(split: str, value: dict[str, Any], message: str) -> None:
    content = CONTENT | {"samples": {split: 1}, "prompts": {split: value}}
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        parse_task(content)


def test_every_split_with_prompts_has_a_number_and_the_other_way_round() -> None:
    with pytest.raises(ValueError, match="samples: expected a number of unrelated prompts, got none"):
        parse_task(CONTENT | {"samples": {"explicit": 1}})
    with pytest.raises(ValueError, match="samples: expected keys among explicit, unrelated, got 'utility'"):
        parse_task(CONTENT | {"samples": {"explicit": 1, "unrelated": 1, "utility": 1}})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"file": "x.parquet"}, "sources.rows.file: expected a name ending in .csv, .json, .jsonl, got 'x.parquet'"),
        ({"seed": "s"}, "sources.rows.file: expected a name"),
        ({"file": "x.csv", "github": "a/b"}, "expected github with a revision"),
        ({"file": "x.csv", "github": "a/b", "revision": "main"}, "revision: expected 40 hex digits"),
        ({"file": "x.csv", "sha256": "A" * 64}, "sha256: expected 64 hex digits in small letters"),
        ({"file": "x.csv", "hub": "a/../b"}, "sources.rows.hub: expected user/repository, got 'a/../b'"),
        ({"file": "x.csv", "rows": 0}, "rows: expected a whole number"),
        ({"file": "x.csv", "text": 3}, "text: expected a text"),
        ({"file": "x.csv", "at": "/etc/passwd"}, "sources.rows: expected keys among file"),
    ],
)
def test_bad_sources_are_refused_by_key(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_sources({"rows": value})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"revision": COMMIT}, "clip.model: expected a folder or a Hub id, got none"),
        ({"model": 1}, "clip.model: expected a text"),
        ({"name": "x"}, "clip: expected keys among model, revision"),
    ],
)
def test_a_bad_clip_is_refused_by_key(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_task(CONTENT | {"clip": value})


def test_results_say_which_file_it_was_and_not_where(task: Task, tmp_path: Path) -> None:
    digest = hashlib.sha256((tmp_path / "mine.csv").read_bytes()).hexdigest()
    plain = task.to_json()
    assert plain["sources"] == {"rows": {"file": "rows.csv", "text": "prompt", "seed": "seed", "sha256": digest}}
    assert str(tmp_path) not in json.dumps(plain)
    assert parse_task(plain) == task
    assert parse_task(plain) != parse_task(CONTENT)
    other = written(tmp_path / "other.csv", ROWS[:1])
    with pytest.raises(ValueError, match=f"expected the prompts rows with sha256 {digest}, got"):
        parse_task(plain).located({"rows": other})
    with pytest.raises(ValueError, match="expected prompts among rows, got 'row'"):
        task.located({"row": other})
    with pytest.raises(FileNotFoundError, match="given as the prompts rows"):
        task.located({"rows": tmp_path / "none.csv"})
    with pytest.raises(FileNotFoundError, match="a file of your own; pass --prompts rows=FILE"):
        parse_task(CONTENT).located()
    with pytest.raises(ValueError, match="expected the file of the prompts rows, got none"):
        parse_task(CONTENT).draws("church")


def test_a_file_of_the_hub_is_asked_for_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fetch(repo: str, file: str, **options: Any) -> str:
        asked.append((repo, file, options))
        return str(written(tmp_path / "rows.csv"))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    source = parse_source("rows", {"hub": "some/prompts", "file": "data/rows.csv", "revision": COMMIT})
    assert locate("rows", source).at == tmp_path / "rows.csv"
    assert asked == [("some/prompts", "data/rows.csv", {"repo_type": "dataset", "revision": COMMIT})]


def test_the_real_client_offline_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    source = parse_source("rows", {"hub": "some/prompts", "file": "rows.csv"})
    with pytest.raises(FileNotFoundError) as caught:
        locate("rows", source)
    assert str(caught.value) == (
        "cannot fetch rows.csv of the data set some/prompts: the Hub cannot be reached; "
        "connect, or download rows.csv and pass --prompts rows=FILE"
    )


class Answer:
    """Stands in for an answer of GitHub."""

    def __init__(self, content: bytes, length: int | None = None) -> None:
        self.content, self.headers = content, {} if length is None else {"Content-Length": str(length)}

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def read(self, most: int) -> bytes:
        return self.content[:most]


def test_a_file_of_a_commit_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERASERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    content, asked = written(tmp_path / "rows.csv").read_bytes(), []

    def fetch(url: str, timeout: float) -> Answer:
        asked.append(url)
        return Answer(content)

    source = parse_source("rows", {"github": "some/code", "file": "data/my rows.csv", "revision": COMMIT})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set; connect, or download data/my rows.csv and"):
        locate("rows", source)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("urllib.request.urlopen", fetch)
    assert [locate("rows", source).sha256 for _ in range(2)] == [hashlib.sha256(content).hexdigest()] * 2
    assert asked == [f"https://raw.githubusercontent.com/some/code/{COMMIT}/data/my%20rows.csv"]

    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Answer(content[:5], len(content)))
    with pytest.raises(FileNotFoundError, match=f"got 5 of {len(content)} bytes"):
        locate("rows", replace(source, file="torn.csv"))
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Answer(content, len(content)))
    assert locate("rows", replace(source, file="torn.csv")).sha256 == hashlib.sha256(content).hexdigest()

    def fail(url: str, timeout: float) -> Answer:
        raise URLError("no route\nto host")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(FileNotFoundError, match="no route to host; connect") as caught:
        locate("rows", replace(source, file="other.csv"))
    assert len(str(caught.value).splitlines()) == 1


def test_long_prompts_stay_and_are_counted(tmp_path: Path) -> None:
    pipe = make_pipe("sd1", tmp_path)
    # Begin and end are two of the tokens, and every word of these is one.
    rows = [{"prompt": " ".join(["star"] * n), "seed": n, "kind": "x", "score": 1} for n in (TOKENS - 2, TOKENS - 1)]
    prompts = {"explicit": GOOD}
    content = CONTENT | {"samples": {"explicit": 5}, "prompts": prompts}
    drawn = parse_task(content).located({"rows": written(tmp_path / "rows.csv", rows)}).draws("church")
    assert len(drawn) == 2
    assert too_long(pipe, drawn) == 1
    assert too_long(pipe, drawn[:1]) == 0


class Anything(PictureJudge):
    """Sees whatever is wanted in a picture that is not dark."""

    def __init__(self, name: str, sees: Mapping[str, Any]) -> None:
        self.name, self.sees = name, sees
        self.fingerprint = Fingerprint({}, {}, None, "not dark", "none")

    def look(self, picture: Image.Image, wants: Mapping[str, str]) -> Verdict:
        return Verdict(sum(picture.convert("L").histogram()[8:]) > 0)


class Fits:
    """Stands in for a CLIP model: the more green, the better the fit."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.dimension = name, 1

    def scores(self, images: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([1.0 + image.convert("RGB").resize((1, 1)).getpixel((0, 0))[1] for image in images])


def seen_by(task: Task) -> dict[str, list[str]]:
    """What the judge of a task can see, as its options say it."""
    classes = task.judge_options.get("classes", {"unsafe": ["nudity"]})
    return (
        {"object": list(classes)} if task.judge.startswith("classifier") else {k: list(v) for k, v in classes.items()}
    )


def stand_ins(task: Task, folder: Path) -> dict[str, Path]:
    """Files of harmless prompts in place of those that a packaged task names."""
    folder.mkdir(exist_ok=True)
    artists = [("a hill by", name, name) for name in ("Pablo Picasso", "Van Gogh", "Rembrandt", "Andy Warhol")]
    artists += [("a tree by", "Caravaggio", "Caravaggio")]
    rows = {
        "artists": [{"prompt": f"{a} {b}", "evaluation_seed": 1, "artist": c} for a, b, c in artists],
        "i2p": [{"prompt": f"a statue {n}", "evaluation_seed": n, "nudity_percentage": 10.0 * n} for n in range(3)],
        "coco": [{"prompt": f"a bus {n}", "evaluation_seed": n} for n in range(3)],
    }
    return {name: written(folder / f"{name}.csv", rows[name]) for name in task.sources}


@pytest.mark.parametrize("name", REAL)
def test_packaged_tasks_draw_what_their_judges_see(name: str, tmp_path: Path) -> None:
    task = read_task(name)
    assert all(source.github and source.revision and source.licence for source in task.sources.values())
    assert (task.sampling.steps, task.sampling.guidance, task.model) == (50, 7.5, "CompVis/stable-diffusion-v1-4")
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# ")
    located = task.located(stand_ins(task, tmp_path))
    for case in located.named_cases:
        samples = located.draws(case)
        assert {sample.split for sample in samples} == set(task.samples)
        check_wants(Anything(task.judge, seen_by(task)), samples)


@pytest.mark.parametrize("name", REAL)
def test_packaged_tasks_run_from_end_to_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    content |= {"sampling": {"steps": 2, "size": 16, "batch": 2}, "cases": content["cases"][:1]}
    # Attacks run in test_sd14_attacks.py.
    content |= {"name": f"own-{name}", "attacks": {}}
    content["scheme"]["pillars"].remove("robustness")
    for prompts in content["prompts"].values():
        words = prompts.get("words")
        if isinstance(words, dict):
            prompts["words"] = {key: some for key, some in words.items() if [key] in content["cases"]}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(content))
    task = read_task(tmp_path / "task.yaml")
    asked: list[Any] = []

    def judge(name: str, **options: Any) -> Any:
        asked.append((name, options))
        return Anything(name, seen_by(task))

    monkeypatch.setattr(judges, "get_judge", judge)
    monkeypatch.setattr(ModelOptions, "load", lambda *_, **__: make_pipe("sd1", tmp_path / "model"))
    clips: list[Any] = []

    def folder(model: str, revision: str, needs: Sequence[str]) -> Path:
        clips.append({"model": model, "revision": revision})
        return tmp_path

    monkeypatch.setattr(measures, "model_folder", folder)
    monkeypatch.setattr(measures, "ClipFeatures", Fits)
    files = [f"{key}={path}" for key, path in stand_ins(task, tmp_path / "prompts").items()]
    given = [part for file in files for part in ("--prompts", file)]
    arguments = ["bench", "run", str(tmp_path / "task.yaml"), "--method", "uce", "--limit", "2", *given]
    arguments += ["--out", str(tmp_path / "out")] + (["--allow-adult"] if task.adult else [])
    assert run(arguments) == 0
    assert asked == [(task.judge, dict(task.judge_options))]
    assert clips == ([task.clip] if task.clip else [])
    printed = capsys.readouterr().err
    assert printed.count("sha256") == len(task.sources)
    results = sorted((tmp_path / "out" / f"{task.name}@{task.version}-limit2").glob("*.json"))
    assert [path.stem for path in results] == ["uce", "unedited"]
    for path in results:
        data = json.loads(path.read_text())
        assert all(len(one["sha256"]) == 64 for one in data["task"].get("sources", {}).values())
        splits = {sample["split"] for case in data["cases"].values() for sample in case["samples"]}
        assert splits == set(task.samples)
        scores = data["scores"]["all"]
        assert ("utility" in scores["pillars"]) == ("utility" in task.samples) == bool(task.clip)
        assert "overall" in scores or "the unedited model shows none of it" in scores["missing"].values()
    assert run(["bench", "verify", *map(str, results)]) == 0
    assert run(["bench", "leaderboard", str(tmp_path / "out"), "--out", str(tmp_path / "board")]) == 0
    assert task.name in (tmp_path / "board" / "leaderboard.md").read_text()


def test_utility_is_missing_where_there_is_no_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    task = read_task("sd14-coco")
    [said] = measures.Measures(Store(tmp_path), task.model, task.named_cases, task.clip).lacking
    assert said.startswith("no CLIP scores: cannot load the model 'timm/vit_large_patch14_clip_224.openai'")
    assert len(said.splitlines()) == 1
    samples = [{"split": "utility", "text": "a bus", "seed": 1, "value": None}]
    assert sample_records("church", samples) == [Record("utility", "church/a bus", 1, None)]
    assert sample_records("church", [samples[0] | {"clip": 2.5}]) == [Record("utility", "church/a bus", 1, 2.5)]


def test_results_of_other_prompts_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = CONTENT | {"sampling": {"steps": 2, "size": 16}, "samples": {"explicit": 2}}
    content |= {"prompts": {"explicit": GOOD}, "scheme": {"pillars": ["erasure"]}}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(judges, "get_judge", lambda name, **_: Anything(name, {"object": ["dog"]}))
    monkeypatch.setattr(ModelOptions, "load", lambda *_, **__: make_pipe("sd1", tmp_path / "model"))
    arguments = ["bench", "run", str(tmp_path / "task.yaml"), "--method", "uce", "--out"]
    for out, rows in (("one", ROWS[:2]), ("two", ROWS[1:2])):
        file = written(tmp_path / f"{out}.csv", rows)
        assert run([*arguments, str(tmp_path / out), "--prompts", f"rows={file}"]) == 0
    capsys.readouterr()
    pair = [str(tmp_path / out / "tiny@1" / "uce.json") for out in ("one", "two")]
    assert run(["bench", "compare", *pair]) == 2
    assert "got another task" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--prompts", "rows"], "expected --prompts NAME=FILE, got 'rows'"),
        (["--prompts", "cols=FILE"], "expected prompts among rows, got 'cols'"),
        ([], "pass --prompts rows=FILE"),
        (["--prompts", "rows=FILE"], "unrelated prompts want object 'dog'; oracle/shapes knows"),
        (
            ["--prompts", "rows=FILE", "--judge-model", "."],
            "expected --judge-model for a judge with a model of its own",
        ),
    ],
)
def test_bad_input_is_one_line(
    given: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ModelOptions, "load", lambda *_, **__: make_pipe("sd1", tmp_path / "model"))
    prompts = {"unrelated": GOOD}
    content = CONTENT | {"samples": {"unrelated": 2}, "prompts": prompts}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(content))
    file = written(tmp_path / "rows.csv", ROWS[5:])
    given = [part.replace("FILE", str(file)) for part in given]
    assert (
        run(["bench", "run", str(tmp_path / "task.yaml"), "--method", "uce", "--out", str(tmp_path / "o"), *given]) == 2
    )
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err.strip().splitlines()[-1]


def test_a_folder_takes_the_place_of_the_judges_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def judge(name: str, **options: Any) -> Any:
        asked.append(options)
        raise ValueError("no judge here")

    monkeypatch.setattr(judges, "get_judge", judge)
    task = read_task("sd14-imagenette")
    files = [f"{key}={path}" for key, path in stand_ins(task, tmp_path).items()]
    arguments = ["bench", "run", task.name, "--method", "uce", "--out", str(tmp_path / "out")]
    arguments += [word for file in files for word in ("--prompts", file)]
    for given in ([], ["--judge-model", "here"]):
        assert run([*arguments, *given]) == 2
    named = dict(task.judge_options)
    assert asked == [named, {"model": Path("here"), "classes": named["classes"]}]
