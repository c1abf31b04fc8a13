"""The table of methods in README.md, from the committed results of shapes-standard, of `cost.py` and of `reversal.py`.

python benchmarks/method_table.py            # write it
python benchmarks/method_table.py --check    # exit 1 if it is not what the results say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erasers import list_erasers
from erasers.eraser import eraser_class
from erasers.files.atomic import write_atomically

ROOT = Path(__file__).parent.parent
TASK = "shapes-standard@2"
COST = "shapes-cost.json"
REVERSAL = "shapes-reversal.json"
START, END = "<!-- methods: benchmarks/method_table.py -->", "<!-- end of methods -->"


NOTE = f"""\
Figures of `{TASK}`, between 0 and 1, higher is better: how much less often the concept is drawn when it is
asked for, how often the worst attack by text fails, how often unrelated concepts are still drawn; means over four
concepts, and so is the size of the patch. Seconds are those of one core of a CPU for one concept of the embedded
model. Bit for bit: with the patch the pipeline draws another picture, and once it is off all weights and the picture
are those from before (`python benchmarks/reversal.py`). - is not measured."""


ORDER = (
    *("uce", "rece", "realera", "dp", "oce", "leace", "speed"),
    *("few_shot", "esd", "ablation", "safe", "co_erasing", "concept_slider"),
    *("salun", "receler", "spm", "hirm", "stereo", "eraseflow", "mace"),
    *("adv_unlearn", "doco", "robust_ablation", "geom_erasing", "itd", "eim"),
    *("semantic_surgery", "adavd", "casteer", "safree", "sld", "negative_prompt"),
)
"""Of the rows; methods that are not named here come behind them."""
Facts = Mapping[str, Mapping[str, Any]]
"""What is known, by method."""


def table(results: Facts, costs: Facts, reversals: Facts) -> str:
    """The table in Markdown: every registered method, as its class says of itself; "-" where there is no result yet.

    Args:
        results: Result files of the task, by row.
        costs: What `cost.py` found, by method.
        reversals: What `reversal.py` found, by method.
    """
    head = "| name | paper | family | erasure | robustness | kept | seconds | patch | reversible | strengths | limits |"
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    names = list_erasers()
    for name in sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
        method, result = eraser_class(name), results.get(name)
        facts = [_pillar(result, pillar) for pillar in ("erasure", "robustness", "specificity")]
        facts += [_seconds(costs.get(name)), _size(result), _reversible(reversals.get(name))]
        cells = (f"`{name}`", method.paper, method.family, *facts, method.strengths, method.limits)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", NOTE])


def _pillar(result: Mapping[str, Any] | None, name: str) -> str:
    score = result and result["scores"]["all"]["pillars"].get(name)
    return f"{score['value']:.2f}" if score and score["value"] is not None else "-"


def _seconds(cost: Mapping[str, Any] | None) -> str:
    if cost is None:
        return "-"
    seconds = cost["cpu_seconds"]
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2f}"


def _size(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "-"
    sizes = [case["patch"]["bytes"] for case in result["cases"].values()]
    return f"{sum(sizes) / len(sizes) / 1024:.0f} KiB"


def _reversible(reversal: Mapping[str, Any] | None) -> str:
    """A patch that did not change the picture shows nothing by coming off."""
    if reversal is None or not reversal["picture"]:
        return "-"
    return "no" if reversal["tensors_left"] or reversal["hooks_left"] or reversal["picture_left"] else "bit for bit"


def written(text: str, results: Facts, costs: Facts, reversals: Facts) -> str:
    """The README with the table between its marks.

    Raises:
        ValueError: Marks that are not there once each.
    """
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"expected {START} and {END} once each in README.md")
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{table(results, costs, reversals)}\n{END}{rest.partition(END)[2]}"


def _methods(path: Path) -> Facts:
    return json.loads(path.read_text(encoding="utf-8"))["methods"] if path.is_file() else {}


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the table is not current")
    options = parser.parse_args(arguments)
    readme = root / "README.md"
    folder = root / "benchmarks" / "results" / TASK
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    costs, reversals = (_methods(folder.parent / name) for name in (COST, REVERSAL))
    text = readme.read_text(encoding="utf-8")
    new = written(text, results, costs, reversals)
    if options.check:
        if new != text:
            print(
                "the table of methods in README.md is not what the results say; run python benchmarks/method_table.py"
            )
        return int(new != text)
    write_atomically(readme, lambda file: file.write_text(new, encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
