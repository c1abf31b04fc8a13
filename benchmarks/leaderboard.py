"""The leaderboard of the results that lie in `results/<task>@<version>/`: `leaderboard.md` and `leaderboard.html`.

    python benchmarks/leaderboard.py                     # write both anew
    python benchmarks/leaderboard.py --check             # exit 1 and name the files that are not what results say
    python benchmarks/leaderboard.py --adopt results     # first take over what `erase bench run --out results` wrote

Only results that verify get in; the tasks of this folder (`*.yaml`) count as those of the package do. Of the pictures
of a run only those that the leaderboard shows are kept, in `results/images/`, no larger than it shows them. Tasks that
were cut short stay out, and so do those of adult content: their prompts do not belong into a repository.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from erasers.evaluation.leaderboard.pictures import shrunk
from erasers.evaluation.leaderboard.write import shown_images, write_leaderboard
from erasers.evaluation.run.verifying import Verifier, verified
from erasers.evaluation.scores.results import Result, read_tasks, result_files
from erasers.files.atomic import write_atomically

FOLDER = Path(__file__).parent
FILES = ("leaderboard.md", "leaderboard.html")


def wrong(folder: Path) -> list[str]:
    """Files of a folder that are not what its results say: of the leaderboard, and pictures that it does not show."""
    results = folder / "results"
    expected = {}
    if any(results.glob("*@*")):
        with tempfile.TemporaryDirectory() as fresh:
            write_leaderboard([results], Path(fresh), measurements=_measurements(results))
            expected = {name: (Path(fresh) / name).read_bytes() for name in FILES}
    differing = [name for name in FILES if _content(folder / name) != expected.get(name)]
    return differing + [str(path.relative_to(folder)) for path in _stray(results)]


def adopt(store: Path, results: Path) -> list[str]:
    """Take over the tasks of a store, each as a whole, and drop pictures that are not shown any more.

    Args:
        store: What a run wrote, or one task's folder in it.
        results: Where the committed results lie.

    Returns:
        What stayed out, and why.

    Raises:
        ValueError: Damaged results or pictures, results that do not verify, or a store that is `results` itself.
    """
    refuse_wrong([store])
    tasks = read_tasks([store])
    out = {title: why for title, rows in tasks.items() if (why := _refused(rows))}
    taken = [rows for title, rows in tasks.items() if title not in out]
    for rows in taken:
        _take(rows, results / rows[0].path.parent.name)
    for path in _stray(results):
        path.unlink()
    return [f"{title} stays out: {why}" for title, why in out.items()]


def refuse_wrong(paths: Sequence[Path]) -> None:
    """Hold result files against their tasks.

    Raises:
        ValueError: Some do not verify; says which, and why.
    """
    _, refused = verified(result_files(paths), Verifier(sorted(FOLDER.glob("*.yaml"))))
    if refused:
        raise ValueError("; ".join(f"{path} does not verify: {why}" for path, why in refused.items()))


def _refused(rows: Sequence[Result]) -> str:
    if "limit" in rows[0].task:
        return "it was cut short"
    return "adult content" if rows[0].adult else ""


def _take(rows: Sequence[Result], target: Path) -> None:
    """Put the rows of a task into a folder in place of what is there, and the pictures that are shown beside it."""
    paths = [row.path for row in rows]
    source = paths[0].parent
    if source == target.resolve():
        raise ValueError(f"expected the folder of a run, got {target}, where the results lie already")
    images = source.parent / "images"
    places = [Path(key[:2]) / f"{key}.png" for key in shown_images(paths)]
    pictures = {place: shrunk(images / place)[0] for place in places if (images / place).is_file()}
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in paths:
        shutil.copyfile(path, target / path.name)
    for place, content in pictures.items():
        path = target.parent / "images" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file, content=content: file.write_bytes(content))


def _stray(results: Path) -> list[Path]:
    """Pictures beside the results that the leaderboard does not show."""
    pictures = sorted((results / "images").rglob("*.png"))
    shown = set(shown_images([results])) if pictures and any(results.glob("*@*")) else set()
    return [path for path in pictures if path.stem not in shown]


def _measurements(results: Path) -> list[Path]:
    """What the page draws behind the tasks."""
    return [path for kind in ("many", "interference") for path in sorted(results.glob(f"*-{kind}.json"))]


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def main(arguments: Sequence[str] | None = None, folder: Path = FOLDER) -> int:
    """The script, for the leaderboard of a folder; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="write nothing; exit 1 and name the files that differ")
    what.add_argument("--adopt", type=Path, metavar="STORE", help="take over the tasks of a run's folder first")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            if any((folder / "results").glob("*@*")):
                refuse_wrong([folder / "results"])
            differing = wrong(folder)
            for name in differing:
                print(f"{name} is not what the results say; run python benchmarks/leaderboard.py")
            return int(bool(differing))
        for line in adopt(options.adopt, folder / "results") if options.adopt else ():
            print(line)
        if not options.adopt:
            refuse_wrong([folder / "results"])
        write_leaderboard([folder / "results"], folder, measurements=_measurements(folder / "results"))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for name in FILES:
        print(folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
