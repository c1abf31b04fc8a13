"""The table of methods in README.md, from the committed results of shapes-standard, of `cost.py` and of `reversal.py`.

python benchmarks/method_table.py            # write it
python benchmarks/method_table.py --check    # exit 1 if it is not what the results say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasers import list_erasers
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


@dataclass(frozen=True)
class About:
    """What no result says of a method.

    Args:
        paper: Title and address.
        family: What is changed, and how.
        strengths: In a few words.
        limits: In a few words.
    """

    paper: str
    family: str
    strengths: str
    limits: str


METHODS: Mapping[str, About] = {
    "uce": About(
        "[UCE](https://arxiv.org/abs/2308.14761)",
        "closed form, text maps",
        "under a second, many concepts, every family",
        "the denoiser can still draw it",
    ),
    "rece": About(
        "[RECE](https://arxiv.org/abs/2407.12383)",
        "closed form, text maps",
        "as UCE, with rounds against what undoes it",
        "as UCE",
    ),
    "realera": About(
        "[RealEra](https://arxiv.org/abs/2410.09140), reconstructed",
        "closed form, text maps",
        "erases what lies around the concept",
        "as UCE; from the paper's description, without its LoRA stage",
    ),
    "few_shot": About(
        "[Few-shot](https://arxiv.org/abs/2405.07288)",
        "trained, text encoder",
        "seconds, four pictures",
        "blunt: what stays depends on where it is stopped",
    ),
    "esd": About(
        "[ESD](https://arxiv.org/abs/2303.07345)",
        "trained, denoiser",
        "no pictures needed",
        "the style stays; found by attacks it was not trained on",
    ),
    "adv_unlearn": About(
        "[AdvUnlearn](https://arxiv.org/abs/2405.15234)",
        "trained, text encoder, against attacks",
        "holds against most prompts; neighbours mostly stay",
        "the concept's words again and again; the denoiser is untouched",
    ),
    "doco": About(
        "[DoCo](https://arxiv.org/abs/2405.15304)",
        "trained, text maps, with a discriminator",
        "the anchor takes the concept's place",
        "settings for each concept",
    ),
    "robust_ablation": About(
        "of this library",
        "trained, denoiser, against attacks",
        "the denoiser forgets how to draw it",
        "minutes; fine-tuning brings some of it back",
    ),
    "itd": About(
        "[ItD](https://arxiv.org/abs/2503.09446)",
        "runtime hook, text encoder or denoiser",
        "other prompts stay bit for bit",
        "can be switched off; needs this library to load",
    ),
}


Facts = Mapping[str, Mapping[str, Any]]
"""What is known, by method."""


def table(results: Facts, costs: Facts, reversals: Facts) -> str:
    """The table in Markdown: every registered method in the order above, "-" where there is no result yet.

    Args:
        results: Result files of the task, by row.
        costs: What `cost.py` found, by method.
        reversals: What `reversal.py` found, by method.

    Raises:
        ValueError: A method without a row above.
    """
    head = "| name | paper | family | erasure | robustness | kept | seconds | patch | reversible | strengths | limits |"
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    if lacking := [name for name in list_erasers() if name not in METHODS]:
        raise ValueError(f"expected a row of METHODS for {', '.join(lacking)}, got none")
    for name, about in ((name, about) for name, about in METHODS.items() if name in list_erasers()):
        result = results.get(name)
        facts = [_pillar(result, pillar) for pillar in ("erasure", "robustness", "specificity")]
        facts += [_seconds(costs.get(name)), _size(result), _reversible(reversals.get(name))]
        cells = (f"`{name}`", about.paper, about.family, *facts, about.strengths, about.limits)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", NOTE])


def _pillar(result: Mapping[str, Any] | None, name: str) -> str:
    found = result and result["scores"]["all"]["pillars"].get(name)
    return f"{found['value']:.2f}" if found and found["value"] is not None else "-"


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


def _reversible(found: Mapping[str, Any] | None) -> str:
    """A patch that did not change the picture shows nothing by coming off."""
    if found is None or not found["picture"]:
        return "-"
    return "no" if found["tensors_left"] or found["hooks_left"] or found["picture_left"] else "bit for bit"


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
    write_atomically(readme, lambda part: part.write_text(new, encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
