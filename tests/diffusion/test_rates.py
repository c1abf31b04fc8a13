"""One rule for networks of every size: what a step does to a narrow network it does to a wide one."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from PIL import Image
from support.scripts import benchmark

from erasers import Concept, get_eraser
from erasers.attacks import get_attack
from erasers.attacks.relearning import Relearning
from erasers.diffusion.conditions import conditions
from erasers.diffusion.counting import Counter
from erasers.diffusion.gradients import frozen
from erasers.diffusion.rates import LOW_RANK_CHANGE, TOKEN_STEP, rate_for_change, token_rate
from erasers.diffusion.tokens import token_table
from erasers.evaluation.tasks.task import list_tasks, read_task
from erasers.methods import few_shot
from erasers.methods.few_shot import DRIFT, Bound, Outputs, apart, trained_names
from erasers.training.student import Student

RATES = benchmark("rates")
TEXTS = ["a red star", "a blue circle on a white background", "two yellow hearts", ""]
STAR = Concept("star", anchor="circle", preserve=("a blue moon",), neighbours=("ring",))


def scene_of_width(width: int) -> Any:
    text = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 2, "vocab_size": 730}
    unet = {"block_out_channels": (width, width), "layers_per_block": 1, "sample_size": 8, "cross_attention_dim": width}
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    pipe = RATES.random_pipe(unet | blocks, text | {"num_attention_heads": max(1, width // 64)})
    pictures = torch.randn(2, 4, 8, 8, generator=RATES.seeded())
    return RATES.scene_of(pipe, pictures, conditions(pipe, [RATES.PROMPT] * 2))


@pytest.fixture(scope="module")
def scenes() -> list[Any]:
    """A narrow network and a wide one."""
    return [scene_of_width(32), scene_of_width(256)]


def relearned(scene: Any, rate: Any) -> float:
    with frozen(scene.pipe):
        (row,) = RATES.relearned(scene, rate, steps=(1,))
    return float(row.output)


def ratio(values: list[float]) -> float:
    return max(values) / min(values)


@pytest.mark.full
def test_a_step_of_relearning_does_as_much_to_a_narrow_network_as_to_a_wide_one(scenes: list[Any]) -> None:
    assert ratio([relearned(scene, 5e-3) for scene in scenes]) > 4
    changes = [relearned(scene, "auto") for scene in scenes]
    assert ratio(changes) < 1.5
    assert changes[0] == pytest.approx(LOW_RANK_CHANGE, rel=0.2)


@pytest.mark.full
def test_the_attack_measures_its_rate_on_the_unedited_model(scenes: list[Any]) -> None:
    def draw(pipe: Any, arguments: Any, seeds: Any) -> list[Any]:
        return [Image.effect_noise((64, 64), 80).convert("RGB") for _ in seeds]

    attack = Relearning(pictures=2, rank=8)
    ask = dataclasses.make_dataclass("Ask", ["text", "seed", "wants"])(RATES.PROMPT, 0, {})
    rates = [attack.prepare(here.pipe, [ask], draw=draw, generator=RATES.seeded()).lr for here in scenes]
    assert rates[0] > 4 * rates[1]
    changes = [relearned(here, rate) for here, rate in zip(scenes, rates, strict=True)]
    assert ratio(changes) < 2
    fixed = get_attack("relearning", pictures=2, lr=3e-3)
    assert fixed.prepare(scenes[0].pipe, [ask], draw=draw, generator=RATES.seeded()).lr == 3e-3


@pytest.mark.full
def test_a_step_of_soft_tokens_follows_the_token_table(scenes: list[Any]) -> None:
    def moved(scene: Any, rate: Any) -> float:
        with frozen(scene.pipe):
            (row,) = RATES.soft(scene, rate, steps=(1,))
        return float(row.text)

    wide = scenes[1]
    table = token_table(wide.pipe)
    places = wide.pipe.text_encoder.embeddings.position_embedding.weight.data
    plain = {rate: moved(wide, rate) for rate in (5e-3, "auto")}
    table.mul_(0.1)
    places.mul_(0.1)
    try:
        small = {rate: moved(wide, rate) for rate in (5e-3, "auto")}
        assert token_rate("auto", table) == pytest.approx(TOKEN_STEP * float(table.square().mean().sqrt()))
    finally:
        table.mul_(10)
        places.mul_(10)
    assert ratio([plain[5e-3], small[5e-3]]) > 2
    assert ratio([plain["auto"], small["auto"]]) < 1.2
    assert ratio([moved(scene, "auto") for scene in scenes]) < 2
    assert token_rate(0.02, table) == 0.02


def test_drift_follows_how_far_prompts_are_apart(scenes: list[Any]) -> None:
    pipe = scenes[0].pipe
    norm = pipe.text_encoder.final_layer_norm
    outputs = Outputs(pipe, Student(pipe, trained_names(pipe), generator=torch.Generator()))
    (before,), was = apart(outputs, TEXTS), norm.bias.data.clone()
    norm.bias.data.fill_(3.0)
    try:
        (after,) = apart(outputs, TEXTS)
    finally:
        norm.bias.data.copy_(was)
    assert before > 2 * after > 0
    assert apart(outputs, [*TEXTS, TEXTS[0]]) == [before]
    with pytest.raises(ValueError, match="two prompts that the text encoder tells apart"):
        apart(outputs, ["a red star"])


def test_few_shot_bounds_by_that(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[Any] = []
    texts: list[str] = []
    start = Bound.__post_init__
    monkeypatch.setattr(few_shot, "apart", lambda outputs, asked: (texts.extend(asked), [0.5])[1])
    monkeypatch.setattr(Bound, "__post_init__", lambda self: (bounds.extend(self.most), start(self))[1])
    for most in ("auto", 0.3):
        get_eraser("few_shot", steps=2, iterations=1, max_drift=most).fit(pipe, STAR, progress=False)
    assert bounds == [DRIFT * 0.5, 0.3]
    assert {"", "a blue moon", "a picture of a star", "a picture of a ring"} <= set(texts)


@pytest.mark.parametrize("method", ["robust_ablation", "few_shot"])
def test_measuring_a_rate_is_counted(pipe: Any, method: str) -> None:
    options: dict[str, Any] = {"iterations": 2, "steps": 2, "pictures": 2, "batch": 2}
    options |= {"kept": 3} if method == "few_shot" else {"kept": 3, "kept_batch": 2, "noises": 40, "bank": 2}
    eraser = get_eraser(method, **options)
    with Counter(pipe) as counter:
        eraser.fit(pipe, STAR, progress=False)
    assert counter.calls == eraser.cost(pipe, STAR)


def test_the_rate_is_found_and_the_weights_stay() -> None:
    weight, slope = torch.tensor([3.0, -4.0]), torch.tensor([1e-9, -2.0])
    before = weight.clone()
    rate = rate_for_change(lambda: weight.square().clone(), [weight], [slope], 0.1)
    assert torch.equal(weight, before)
    after = (before - rate * slope.sign()).square()
    assert (after - before.square()).norm() / before.square().norm() == pytest.approx(0.1, rel=1e-3)
    with pytest.raises(ValueError, match="a step that changes the prediction"):
        rate_for_change(lambda: torch.ones(2), [weight], [slope], 0.1)
    assert torch.equal(weight, before)


def test_the_embedded_model_keeps_its_rates() -> None:
    """Results that are committed were made with them."""
    preset = get_eraser("robust_ablation-shapes")
    assert (preset.attack_lr, preset.relearn_lr) == (0.02, 5e-3)
    assert get_eraser("few_shot-shapes").max_drift == 0.15
    assert get_eraser("adv_unlearn-shapes").attack_lr == 0.02
    plans = [plan for task in list_tasks() if task.startswith("shapes") for plan in read_task(task).attacks.values()]
    assert {plan.attack.lr for plan in plans if plan.name == "relearning"} == {5e-3}
    assert {plan.attack.lr for plan in plans if plan.name == "cce"} == {0.01}


@pytest.mark.parametrize(
    ("name", "option"),
    [("robust_ablation", "attack_lr"), ("robust_ablation", "relearn_lr"), ("adv_unlearn", "attack_lr")],
)
def test_rates_are_checked(name: str, option: str) -> None:
    for value in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"expected {option} above 0"):
            get_eraser(name, **{option: value})
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"expected {option} as a number of at most"):
            get_eraser(name, **{option: value})
    with pytest.raises(ValueError, match=f"expected {option} as a number or auto"):
        get_eraser(name, **{option: "fast"})
    for attack in ("relearning", "cce"):
        with pytest.raises(ValueError, match="expected lr above 0"):
            get_attack(attack, lr=0.0)


def test_the_table_of_rates_is_that_of_the_committed_results() -> None:
    found = {
        size: [RATES.Row(**row) for row in json.loads((RATES.RESULTS / f"rates-{size}.json").read_text())["rows"]]
        for size in ("shapes", "sd14")
    }
    assert RATES.table(found) in (RATES.RESULTS.parent / "README.md").read_text(encoding="utf-8")
    used = {(size, row.what, row.rate, row.steps): row.output for size, rows in found.items() for row in rows}
    what = "low-rank weights that relearn (rank 8)"
    assert used["sd14", what, 5e-3, 1] > 8 * used["shapes", what, 5e-3, 1]
    assert used["sd14", what, "auto", 1] == pytest.approx(used["shapes", what, "auto", 1], rel=0.05)
