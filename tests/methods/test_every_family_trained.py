"""Every method that trains on every family: it fits a patch and leaves the model as it was, or is refused first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.adapters import save_adapter
from support.families.all import FAMILIES
from support.selection import cases
from support.tiny import same, weights
from support.trained import METHODS, ONE_RANK, STAR, family_pipe

from erasers import get_eraser
from erasers.eraser import eraser_class
from erasers.models.feeding import feeds_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")

UNCALLED = {"hunyuandit", "luminanext", "prx", "animatediff"}
UNETS = {"sd1", "sd2", "sdxl"}
SMALL: dict[str, dict[str, Any]] = {
    "ablation": METHODS["ablation"] | {"templates": ("a {}",), "pictures": 2},
    "adv_unlearn": METHODS["adv_unlearn"] | {"pictures": 1, "kept": 2, "attack_steps": 1, "warm_up": 0},
    "co_erasing": METHODS["co_erasing"],
    "concept_slider": METHODS["concept_slider"] | {"both_signs": False},
    "doco": METHODS["doco"] | {"captions": ("a {}",), "pictures": 2},
    "esd": METHODS["esd"] | {"pictures": 1},
    "few_shot": METHODS["few_shot"] | {"pictures": 1, "kept": 2},
    "safe": METHODS["safe"] | {"pictures": 1},
    "hirm": METHODS["hirm"],
    "stereo": METHODS["stereo"] | {"pictures": 1, "attack_lr": 1e-2},
    "salun": METHODS["salun"] | {"templates": ("a {}",), "pictures": 2},
    "robust_ablation": METHODS["robust_ablation"]
    | {"templates": ("a {}",), "pictures": 2, "kept": 2, "bank": 1, "tokens": (1,), "relearn_lr": 1e-2},
}
QUICK = {
    ("salun", "sana"),
    ("hirm", "flux"),
    ("stereo", "sd3"),
    ("ablation", "lumina2"),
    ("esd", "zimage"),
    ("doco", "wan"),
    ("robust_ablation", "auraflow"),
    ("few_shot", "sd35"),
    ("esd", "prx"),
    ("safe", "pixart"),
}


def test_no_method_is_left_out() -> None:
    # A method for few families says itself which: its own tests ask it.
    assert not [name for name in METHODS if eraser_class(name).everywhere and name not in SMALL]


@pytest.mark.parametrize(
    ("method", "family"), cases(SMALL, FAMILIES, default=lambda method, family: (method, family) in QUICK)
)
def test_it_trains_or_is_refused(
    method: str, family: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    pipe, size = family_pipe(family, tmp_path), FAMILIES[family].options.get("height")
    rank = ONE_RANK.get(method, 2)
    options = SMALL[method] | {"iterations": 2, "lr": 1e-2, "rank": rank, "size": size, "everyday": False}
    cell: dict[str, Any] = {"works": family not in UNCALLED}
    message = "that can be trained and attacked"
    if method == "co_erasing" and cell["works"]:
        cell["works"], message = family in UNETS, "whose UNet takes an IP-Adapter"
        options["adapter"] = str(save_adapter(pipe.unet, tmp_path)) if cell["works"] else "auto"
    if method in ("adv_unlearn", "few_shot", "hirm", "stereo") and cell["works"]:
        options["encoders"] = tuple(feeds_of(pipe))
    eraser, before = get_eraser(method, **options), weights(pipe)
    if cell["works"]:
        patch = eraser.fit(pipe, STAR, progress=False)
        with patch.applied(pipe):
            assert not same(weights(pipe), before)
        cell["on"] = sorted({name.partition(".")[0] for name in patch.parameters})
    else:
        with pytest.raises(TypeError, match=message):
            eraser.fit(pipe, STAR, progress=False)
    assert same(weights(pipe), before)
    record_property("support", json.dumps(["trained", f"{family}/{method}", cell]))
