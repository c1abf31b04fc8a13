"""Every two rows of a task, paired by prompt and seed: what differs, with p-values that are Holm's over the table.

    python benchmarks/compare.py shapes-standard@2                # all pairs of the results that lie in `results/`
    python benchmarks/compare.py results/shapes-quick@1 uce rece  # these rows of a run's folder

`erase bench compare` does the same for two result files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from erasers.evaluation.scores.results import Result, read_tasks, setting_text
from erasers.evaluation.scores.scoring import Comparison, compare
from erasers.evaluation.scores.statistics import holm
from erasers.markdown import markdown_text

RESULTS = Path(__file__).parent / "results"
HEADS = ("A", "B", "score", "A's", "B's", "A - B", "pictures", "p", "better")


def rows_of(task: str, names: Sequence[str]) -> list[Result]:
    """The rows of a task, or those that are named.

    Args:
        task: A folder of result files, or the name of one in `results/`.
        names: Rows; all for none.

    Raises:
        ValueError: No such task or row, only one row, or damaged results.
    """
    folder = Path(task) if Path(task).is_dir() else RESULTS / task
    if not folder.is_dir():
        known = ", ".join(sorted(path.name for path in RESULTS.glob("*@*"))) or "none"
        raise ValueError(f"expected a folder with results or one of {known}, got {task!r}")
    [rows] = read_tasks(sorted(folder.glob("*.json"))).values()
    known_rows = {row.name: row for row in rows}
    if unknown := [name for name in names if name not in known_rows]:
        raise ValueError(f"expected rows among {', '.join(known_rows)}, got {', '.join(unknown)}")
    chosen = [known_rows[name] for name in names] or rows
    if len(chosen) < 2:
        raise ValueError(f"expected two rows or more, got {', '.join(row.name for row in chosen)}")
    return chosen


def compared(rows: Sequence[Result]) -> list[tuple[str, str, Comparison, float]]:
    """Of all pairs of rows with a case in common: both names, the comparison and its p-value, adjusted for all."""
    pairs = [(first, second) for first, second in combinations(rows, 2) if set(first.cases) & set(second.cases)]
    lines = [(first.name, second.name, line) for first, second in pairs for line in compare(first.path, second.path)]
    adjusted = holm({(first, second, line.name): line.difference.p for first, second, line in lines})
    return [(first, second, line, adjusted[first, second, line.name]) for first, second, line in lines]


def show(first: str, second: str, line: Comparison, p: float) -> list[str]:
    """The cells of a line of the table."""
    better = "tie" if p > 0.05 else "A" if line.difference.value > 0 else "B"
    difference = f"{line.difference.value:+.3f} ({line.difference.low:+.3f} to {line.difference.high:+.3f})"
    values = [f"{line.first:.3f}", f"{line.second:.3f}", difference]
    return [markdown_text(first), markdown_text(second), line.name, *values, str(line.difference.n), f"{p:.3g}", better]


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="a folder of result files, or the name of one in results/")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="two rows or more; all of them by default")
    options = parser.parse_args(arguments)
    try:
        rows = rows_of(options.task, options.rows)
        lines = [show(*line) for line in compared(rows)]
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for line in (HEADS, ["---"] * len(HEADS), *lines):
        print(f"| {' | '.join(line)} |")
    settings = {setting_text(row): row.name for row in rows}
    if len(settings) > 1:
        told = "; ".join(f"{name} and its like {said}" for said, name in settings.items())
        print(f"drawn differently: {told}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
