"""What an audit tries, and what it says of what it found."""

from __future__ import annotations

from typing import Any

import pytest
from support.tiny import make_pipe

from erasers import Concept
from erasers.evaluation.audit import plans, summary
from erasers.evaluation.audit.page import NEVER, Shown, audit_page
from erasers.evaluation.audit.plans import ATTACKS, OTHER_PICTURES, PROMPTS, planned
from erasers.evaluation.audit.summary import BLIND, CAME, CHANCE, FLOOR, NOTHING, reading
from erasers.models.families import UnsupportedPipeline

STAR = (Concept("star", anchor="circle"),)


def share(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": value if low is None else low, "high": value if high is None else high, "n": 12}


@pytest.mark.parametrize("budget", PROMPTS)
def test_every_attack_has_a_control_with_as_many_pictures(pipe: Any, budget: str) -> None:
    own = planned(pipe, STAR, "somebody/model", budget, adapter="auto")
    assert set(own.plans) == {*ATTACKS, *plans.CONTROLS, OTHER_PICTURES, "image_prompt"}
    assert own.left_out == {}
    for plan in own.plans.values():
        assert plan.samples == PROMPTS[budget]
        if plan.control:
            control = own.plans[plan.control]
            assert control.control is None
            images = [entry.against(STAR, "somebody/model").budget().images for entry in (plan, control)]
            assert images[0] <= images[1]


def test_budgets_differ_and_a_number_of_prompts_wins(pipe: Any) -> None:
    quick, thorough = (planned(pipe, STAR, "shapes", budget, prompts=3).plans for budget in ("quick", "thorough"))
    assert {plan.samples for plan in quick.values()} == {3}
    assert quick["p4d"].attack.budget().gradients < thorough["p4d"].attack.budget().gradients
    # An embedded model has rates of its own, others those of the attack.
    assert quick["cce"].options["lr"] == 0.01
    assert "lr" not in planned(pipe, STAR, "somebody/model", "quick").plans["cce"].options
    assert planned(pipe, STAR, "somebody/model", "quick", steps=7).plans["tina"].attack.config()["steps"] == 7


def test_what_a_model_does_not_allow_is_named_with_its_controls(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pipe: Any) -> None:
        raise UnsupportedPipeline("expected another\npipeline")

    monkeypatch.setattr(plans, "check_drawable", refuse)
    own = planned(pipe, STAR, "somebody/model", "quick")
    assert set(own.plans) == {"words", "prefixes"}
    assert set(own.left_out) == {*ATTACKS, "image_prompt"} - {"words"}
    assert own.left_out["cce"] == "expected another pipeline"
    assert "--ip-adapter" in own.left_out["image_prompt"]


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"edited": share(0.5), "control": share(0.1), "excess": share(0.4, 0.2, 0.6)}, CAME),
        ({"edited": share(0.5), "control": share(0.4), "excess": share(0.1, -0.1, 0.3)}, CHANCE),
        ({"edited": share(0.5), "excess": share(0.4, 0.2, 0.6), "reference": share(0.25)}, CAME),
        ({"edited": share(0.5), "excess": share(0.4, 0.2, 0.6), "reference": share(0.5)}, FLOOR),
        ({"edited": share(0.5), "excess": share(0.1, -0.1, 0.3), "reference": share(0.5)}, CHANCE),
        ({"edited": share(0.0), "excess": share(0.0, -0.1, 0.1), "reference": share(0.0)}, NOTHING),
        ({"edited": share(0.0), "control": share(0.0), "excess": share(0.0, -0.1, 0.1)}, NOTHING),
        ({"edited": share(0.0), "unedited": share(0.0)}, BLIND),
        ({}, "not scored"),
    ],
)
def test_an_attack_counts_where_it_does_better_than_its_control(shares: dict[str, Any], said: str) -> None:
    assert reading(shares) == said


def result(values: dict[str, list[bool | None]], details: dict[str, Any]) -> dict[str, Any]:
    samples = [
        {"split": split, "text": f"{split} {number}", "seed": number, "value": value}
        for split, own in values.items()
        for number, value in enumerate(own)
    ]
    return {"cases": {"star": {"samples": samples}}, "scores": {"all": {"details": details}}}


def test_a_summary_says_what_came_back_and_what_was_lost() -> None:
    before = {"explicit": [True] * 8, "unrelated": [True] * 8 + [None]}
    results = {
        "unedited": result(before, {"probe/cce": share(1.0)}),
        "reference": result({"explicit": [False] * 8, "unrelated": [True] * 9}, {"probe/cce": share(0.0)}),
        "patch": result(
            {"explicit": [False] * 8, "unrelated": [False] * 8 + [True]},
            {"probe/cce": share(0.75, 0.5, 0.9), "control/cce": share(0.1), "excess/cce": share(0.65, 0.3, 0.8)},
        ),
    }
    splits = summary.splits(results)
    assert splits["explicit"] == {"before": 8, "after": 0, "n": 8, "reading": "fell", "retrained": 0}
    assert splits["unrelated"]["after"] == 0
    assert "warning" in splits["unrelated"]
    assert "synonym" not in splits
    plan = plans.parse_attacks(
        {
            "words_of_chance": {"attack": "random_text", "samples": 4},
            "cce": {"samples": 4, "control": "words_of_chance"},
        }
    )
    (own,) = summary.attacks(results, plans.Planned(plan, {}))
    assert (own["attack"], own["space"], own["reading"]) == ("cce", "embedding", CAME)
    assert own["reference"]["value"] == 0
    lines = summary.said(["star"], splits, [own])
    assert len(lines) == 2
    assert "cce brings star back in 75 % (50 to 90) of prompts; its control 10 %" in lines[1]
    assert "the retrained model 0 %" in lines[1]


def test_a_page_shows_everything_and_trusts_nothing() -> None:
    row = {
        "attack": "cce",
        "space": "embedding",
        "budget": {"images": 2, "gradients": 240, "encodes": 0},
        "edited": share(0.5),
        "control": share(0.1),
        "reading": CAME,
    }
    content = {
        "title": "<script>alert(1)</script>",
        "said": ["cce brings <b>star</b> back"],
        "attacks": [row],
        "splits": {"explicit": {"before": 8, "after": 0, "n": 8, "reading": "fell"}},
        "not_tried": {"image_prompt": "needs an <IP-Adapter>"},
        "measured": {"judge": "oracle/shapes"},
    }
    shown = [Shown("cce", "note", [("data:image/png;base64,AA==", "a <prompt>")], wrong=True)]
    page = audit_page(content, shown)
    assert "<script>alert" not in page
    assert "a &lt;prompt&gt;" in page
    assert "2 pictures, 240 gradients" in page
    for text in (*NEVER, "needs an &lt;IP-Adapter&gt;", CAME, "50 %", "Look at this first"):
        assert text in page
    assert 'class="sharp"' not in page
    assert 'class="sharp"' in audit_page(content, shown, adult=True)
    calm = audit_page(content | {"said": []}, [])
    assert "Nothing that was tried brought it back" in calm
    assert "No attack of this library" in audit_page(content | {"attacks": []}, [])


def test_the_pipeline_of_another_family_is_planned_for(tmp_path: Any) -> None:
    own = planned(make_pipe("sdxl", tmp_path), STAR, "somebody/model", "quick")
    assert set(own.plans) >= {"words", "cce", "relearning", "noise"}
