"""Pictures as prompts: what is shown, to which model, and that the adapter is gone after."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.adapters import tiny_adapter
from support.attacking import ASKS, Says, attacked, candidates, draw, erasure, prepared
from support.tiny import draw as draw_latents
from support.tiny import same, weights

from erasers.attacks import get_attack
from erasers.attacks.candidate import placed
from erasers.attacks.image_prompt import ImagePrompt

SMALL: dict[str, Any] = {"adapter": tiny_adapter(), "images": 3}


def pixels(pictures: Any) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def test_it_shows_the_unedited_models_pictures_of_the_prompts_beside_a_text_that_names_none(pipe: Any) -> None:
    asked: list[Any] = []

    def drawing(pipe: Any, arguments: Any, seeds: Any) -> Any:
        asked.append((arguments["prompt"], list(seeds)))
        return draw(pipe, arguments, seeds)

    attack = ImagePrompt(**SMALL, text="blue art", scale=0.5)
    ready = attack.prepare(pipe, ASKS, draw=drawing, generator=torch.Generator().manual_seed(0))
    ((texts, seeds),) = asked
    assert texts == [ask.text for ask in ASKS]
    assert len(set(seeds)) == 2
    shown = candidates(attack, pipe, ready)
    assert [candidate.text for candidate in shown] == ["blue art"] * 2
    assert pixels(candidate.image.picture for candidate in shown) == pixels(draw(pipe, {"prompt": texts}, seeds))
    assert {candidate.image.scale for candidate in shown} == {0.5}


def test_the_control_shows_pictures_of_another_prompt(pipe: Any) -> None:
    own, other = (prepared(ImagePrompt(**SMALL, shown=shown), pipe) for shown in (None, "blue art"))
    assert pixels(shown.picture for shown in own) != pixels(shown.picture for shown in other)
    assert ImagePrompt(**SMALL).budget() == ImagePrompt(**SMALL, shown="blue art").budget()


@pytest.mark.parametrize("form", ["weights", "hooks"])
def test_a_candidate_is_drawn_as_diffusers_draws_it_on_the_edited_model(pipes: Any, form: str) -> None:
    pipe, stock = pipes("sd1"), pipes("sd1")
    folder, _, name = SMALL["adapter"].rpartition("/")
    attack = ImagePrompt(**SMALL)
    ready = prepared(attack, pipe)
    for edited in (pipe, stock):
        patch = erasure(edited, form)
        assert patch is not None
        patch.apply(edited)
    before, plain = weights(pipe), draw_latents(pipe)
    (first, _) = candidates(attack, pipe, ready)
    with placed(pipe, [first] * 2) as arguments:
        assert arguments["prompt"] == ["", ""]
        drawn = draw(pipe, arguments, [3, 4])
    stock.load_ip_adapter(folder, subfolder="", weight_name=name)
    arguments = {"prompt": "", "ip_adapter_image": first.image.picture}  # type: ignore[union-attr]
    assert pixels(drawn) == pixels(draw(stock, arguments, [3, 4]))
    assert same(before, weights(pipe))
    assert torch.equal(plain, draw_latents(pipe))


def test_it_spends_what_its_budget_says_and_stops_at_a_success(pipe: Any) -> None:
    attack = ImagePrompt(**SMALL)
    ready = prepared(attack, pipe)
    assert attacked(attack, pipe, ready, Says(False)).spent == attack.budget()
    assert attacked(attack, pipe, ready, Says(True)).spent.images == 1


def test_what_cannot_be_is_refused(pipe: Any) -> None:
    with pytest.raises(ValueError, match="images of at least 2"):
        get_attack("image_prompt", images=1)
    with pytest.raises(ValueError, match="scale of at least 0"):
        get_attack("image_prompt", scale=-1.0)
    with pytest.raises(ValueError, match="expected an IP-Adapter for this model"):
        prepared(ImagePrompt(), pipe)
