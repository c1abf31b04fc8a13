"""The table of what is supported, made from test results, by the command `WRITE`.

A test notes what it found about one cell (family, method, form), one family or one class of pipelines; the notes of a
run go into `docs/support.json`, and `docs/support.md` is made from that alone. A run without the option compares its
notes with the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from erasers.models.families import FAMILIES
from support import REPOSITORY
from support.families.all import FAMILIES as ALL

TESTS = (
    "tests/test_support.py tests/models/test_variants.py tests/attacks/test_every_family.py "
    "tests/methods/test_every_family_trained.py"
)
WRITE = f'python -m pytest {TESTS} --write-support -m ""'
DOCS = REPOSITORY / "docs"
FORMS = {
    "baked": "weights edited in place, `Patch.apply`",
    "LoRA": "`Patch.to_lora`, loaded by stock `load_lora_weights`; at most 2e-5 from baked",
    "kohya": '`Patch.to_lora(form="kohya")`, loaded likewise, for Stable Diffusion 3 by `load_lora`; at most 2e-5 '
    "from baked",
    "delta": "`Patch.to_delta`, loaded by `load_state_dict`; bit for bit as baked",
    "hooks": "`Patch.to_hooks`, a transform of the text while the pipeline runs; at most 2e-5 from baked",
    "folder": "`ErasedPipeline.save_pretrained`, loaded by stock `from_pretrained`; at most 2e-5 from baked",
}
KINDS = {"cross": "cross-attention", "joint": "joint attention", "single": "one sequence"}
_HEAD = f"""# What is supported

Generated from test results by `{WRITE}`;
do not edit. Every cell was run on a small random pipeline of the family, made by the stock class, on a CPU in float32:
the patch fits, changes the picture, comes off bit for bit, and each form gives the picture of the baked patch. It says
that a form works, not that a concept is gone from a real checkpoint: that is for the benchmark.
"""


def render(notes: Mapping[str, Any]) -> str:
    """The page."""
    parts = [_HEAD, "Forms:\n", *(f"* **{name}**: {text}." for name, text in FORMS.items())]
    methods = sorted({key.split("/")[1] for key in notes["cells"]})
    for method in methods:
        parts.append(f"\n## `{method}`\n")
        rows = [_row(notes, family, method) for family in notes["families"]]
        parts.append(_table(["family", "pipeline", "text enters by", *FORMS], rows))
    reasons = _reasons(notes)
    parts += ["", *(f"{number}. {reason}" for reason, number in reasons.items())]
    return (
        "\n".join([*parts, *_trained(notes), *_attacks(notes), *_pipelines(notes), *_exactness(notes), *_ways_in()])
        + "\n"
    )


def _row(notes: Mapping[str, Any], family: str, method: str) -> list[str]:
    about = notes["families"][family]
    cells = [notes["cells"][f"{family}/{method}/{form}"] for form in FORMS]
    marks = ["yes" if cell["works"] else f"no ({_reasons(notes)[cell['reason']]})" for cell in cells]
    return [family, f"`{about['pipeline']}`", KINDS[about["kind"]], *marks]


def _reasons(notes: Mapping[str, Any]) -> dict[str, int]:
    found = dict.fromkeys(cell["reason"] for cell in notes["cells"].values() if not cell["works"])
    return {reason: number for number, reason in enumerate(found, start=1)}


def _trained(notes: Mapping[str, Any]) -> list[str]:
    cells = notes["trained"]
    names = sorted({key.partition("/")[2] for key in cells})
    rows = [[family, *(_trained_cell(cells[f"{family}/{name}"]) for name in names)] for family in notes["families"]]
    return [
        "\n## Methods that train\n",
        "Each was run for two iterations with low-rank weights: the patch moves the weights of the components that are",
        "named, and the training leaves all of them bit for bit. `few_shot` and `adv_unlearn` were given all text",
        "encoders in `encoders`. No: nothing here calls the denoiser but the pipeline itself, or it is no UNet, which",
        "`co_erasing` is for; and the method says so before any work.\n",
        _table(["family", *(f"`{name}`" for name in names)], rows),
    ]


def _trained_cell(cell: Mapping[str, Any]) -> str:
    return ", ".join(f"`{component}`" for component in cell["on"]) if cell["works"] else "no"


def _attacks(notes: Mapping[str, Any]) -> list[str]:
    cells = notes["attacks"]
    names = sorted({key.partition("/")[2] for key in cells})
    rows, reasons = [], dict.fromkeys(cell["reason"] for cell in cells.values() if not cell["works"])
    for family in notes["families"]:
        own = [cells[f"{family}/{name}"] for name in names]
        components = dict.fromkeys(component for cell in own for component in cell.get("on", ()))
        on = ", ".join(f"`{component}`" for component in components)
        rows.append([family, on, *("yes" if cell["works"] else "no" for cell in own)])
    return [
        "\n## Attacks\n",
        "Each was run with a few steps on the unedited pipeline: it spends what its budget says, hands on what the",
        "pipeline draws, and leaves every weight bit for bit. *On*: the components whose weights `relearning` learns,",
        "and the text encoders that others search with. All CLIP encoders are attacked at once; where there is none,",
        "the first encoder is. `noise` changes the sampler, `words` and `random_*` search nothing. No:",
        f"{'; '.join(reasons)}.\n",
        _table(["family", "on", *(f"`{name}`" for name in names)], rows),
    ]


def _pipelines(notes: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, about in notes["pipelines"].items():
        takes = ", ".join(f"`--{key.replace('_', '-')}`" for key in about["takes"])
        why = f" ({about['reason']})" if about["reason"] else ""
        fit, drawn = ("yes" if about["fit"] else f"no{why}"), ("yes" if about["drawn"] else "no")
        rows.append([f"`{name}`", takes, fit, f"no{why}" if about["fit"] and why else drawn])
    return [
        "\n## Other pipelines around the same denoisers\n",
        "Every class that diffusers has around the denoisers above, but for those that it no longer maintains. *Draws",
        "from*: what `erase generate` and `--report` need beside the prompt. *Fitted*: UCE leads the prompt to its",
        "anchor and the patch comes off bit for bit; where it says no, the class is refused with that reason. *Drawn*:",
        "by the command; a no names what the command cannot give. A ControlNet reads the prompt by layers of its own,",
        "which stay unedited, and applying a patch says so. Methods that train take pipelines whose denoiser reads",
        "latents, the time and text alone; others are refused before any work.\n",
        _table(["pipeline", "draws from", "fitted", "drawn"], rows),
    ]


def _exactness(notes: Mapping[str, Any]) -> list[str]:
    rows = [
        [family, *(_figure(about.get(key)) for key in ("gap", "reached", "kept", "joint_reached", "joint_kept"))]
        for family, about in notes["families"].items()
    ]
    return [
        "\n## How exact the ports are\n",
        "UCE with every row of the prompt and next to no ridge, on the same random pipelines. Figures are norms of",
        "differences between latents, relative to the reference. *Before*: the erased prompt against its anchor.",
        "*Reached*: the same after the edit of the `text` ports (and `pooled` ones). *Kept*: a preserved prompt",
        "against itself before. *Joint*: the same for an edit of the keys and values that joint blocks have for text",
        "(`ports=joint`), a heuristic: these read states that blocks have mixed, and on random weights the edit does",
        "not lead to the anchor.\n",
        _table(["family", "before", "reached", "kept", "joint: reached", "joint: kept"], rows),
    ]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}" if value < 1e-3 else f"{value:.2g}"


def _ways_in() -> list[str]:
    rows = []
    for family in FAMILIES:
        text = f"`{family.text.pattern.replace('|', chr(92) + '|')}`"
        joint = f"`{family.joint.pattern}`" if family.joint else ""
        pooled = f"`{family.pooled.port}`" if family.pooled else ""
        rows.append([family.title, f"`{family.denoiser}`", text, pooled, joint, family.unedited or ""])
    return [
        "\n## Where text enters\n",
        "`text` ports read each token unmixed; `pooled` ones read one vector a prompt, and are edited by default where",
        "there is no cross-attention; `joint` ones only on request (`--set ports=text,pooled,joint`).\n",
        _table(["models", "denoiser", "text", "pooled", "joint", "not edited"], rows),
    ]


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class Collector:
    """Gathers notes on the controlling process and writes or compares them at the end of a run."""

    def __init__(self, write: bool) -> None:
        self.write = write
        self.notes: dict[str, dict[str, Any]] = {
            "families": {},
            "cells": {},
            "pipelines": {},
            "trained": {},
            "attacks": {},
        }

    def pytest_runtest_logreport(self, report: Any) -> None:
        for name, value in report.user_properties if report.when == "call" and report.passed else ():
            if name == "support":
                part, key, found = json.loads(value)
                self.notes[part][key] = found

    def pytest_sessionfinish(self, session: Any) -> None:
        path = DOCS / "support.json"
        known = json.loads(path.read_text(encoding="utf-8"))
        if self.write and any(self.notes.values()):
            notes = {part: _ordered({**known.get(part, {}), **found}) for part, found in self.notes.items()}
            path.write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
            (DOCS / "support.md").write_text(render(notes), encoding="utf-8")
            return
        parts = ("cells", "pipelines", "trained", "attacks")
        wrong = [
            key for part in parts for key, found in self.notes[part].items() if known.get(part, {}).get(key) != found
        ]
        if wrong:
            session.exitstatus = 1
            raise SystemExit(
                f"docs/support.json differs from the test results in {wrong[0]} and {len(wrong) - 1} more; run {WRITE}"
            )


def _ordered(notes: Mapping[str, Any]) -> dict[str, Any]:
    """By family as the tests list them, then by name."""
    order = list(ALL)

    def rank(key: str) -> tuple[int, str]:
        family = key.partition("/")[0]
        return (order.index(family) if family in order else len(order), key)

    return {key: notes[key] for key in sorted(notes, key=rank)}
