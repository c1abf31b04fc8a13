"""Every adaptor does what its pipeline does: the same prediction at every step, and the same latents in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from support.families.all import FAMILIES

from erasers.diffusion.adaptors.condition import Condition, cat
from erasers.diffusion.adaptors.packs import packed
from erasers.diffusion.adaptors.table import ADAPTORS, adaptor_of, denoisers_of
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.denoiser import predict
from erasers.diffusion.draws import gaussian
from erasers.diffusion.latent_bank import Way, draw_pictures
from erasers.diffusion.noise import clean, flows, noised, random_times, step_back, target_of, time_grid, total_times

PROMPT, STEPS = "a red star", 3


def same(latents: torch.Tensor) -> torch.Tensor:
    return latents


def last(said: torch.Tensor) -> torch.Tensor:
    return said[-1:]


@dataclass(frozen=True)
class Own:
    """How a family's pipeline is called by itself.

    Args:
        options: Of the call.
        guidance: Name of the guidance scale in the call.
        pack: Latents as the pipeline takes them, and returns them.
        schedule: What its scheduler has otherwise than the tiny pipeline.
        heard: What the denoiser said of a latent without and with the prompt -> the prediction that follows the prompt.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    guidance: str = "guidance_scale"
    pack: Callable[[torch.Tensor], torch.Tensor] = same
    schedule: Mapping[str, Any] = field(default_factory=dict)
    heard: Callable[[torch.Tensor], torch.Tensor] = last


SMALL = {"height": 16, "width": 16}
OWN: dict[str, Own] = {
    "sd1": Own(),
    "sdxl": Own(),
    "sd3": Own(),
    "flux": Own(SMALL, pack=packed),
    "chroma": Own(SMALL, pack=packed),
    "qwenimage": Own(
        {**SMALL, "negative_prompt": " "}, guidance="true_cfg_scale", pack=packed, schedule={"shift_terminal": 0.02}
    ),
    "zimage": Own(SMALL, heard=lambda said: -said[:1, :, 0]),
}
"""Tiny pipeline -> how it is called."""


def built(name: str, folder: Path) -> Any:
    pipe = FAMILIES[name].build(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, **OWN[name].schedule)
    if hasattr(pipe.scheduler, "alphas_cumprod"):
        pipe.scheduler = DDIMScheduler.from_config(
            pipe.scheduler.config, clip_sample=False, set_alpha_to_one=True, steps_offset=1, timestep_spacing="leading"
        )
    return pipe


@dataclass
class Calls:
    """What the denoisers said, one row a latent."""

    said: list[torch.Tensor] = field(default_factory=list)

    def watch(self, pipe: Any) -> None:
        for module in denoisers_of(pipe).values():
            module.register_forward_hook(self._keep)

    def _keep(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        self.said.append(torch.stack(tuple(output[0])))


def by_itself(pipe: Any, own: Own, noise: torch.Tensor, guidance: float) -> torch.Tensor:
    """The latents that the pipeline's own loop ends with."""
    output = pipe(
        prompt=PROMPT,
        latents=own.pack(noise),
        num_inference_steps=STEPS,
        output_type="latent",
        **{own.guidance: guidance},
        **own.options,
    )
    return torch.as_tensor(output[0])


def start(pipe: Any, own: Own) -> torch.Tensor:
    shape = adaptor_of(pipe).shape(pipe, own.options.get("height"))
    return gaussian(torch.empty(1, *shape), torch.Generator().manual_seed(1))


@pytest.fixture(params=list(OWN))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Own]:
    return built(request.param, tmp_path), OWN[request.param]


def test_it_ends_with_the_latents_of_the_pipelines_own_loop(case: tuple[Any, Own]) -> None:
    pipe, own = case
    noise = start(pipe, own)
    mine = draw(pipe, own, noise, 3.0)
    theirs = by_itself(pipe, own, noise, 3.0)
    torch.testing.assert_close(own.pack(mine), theirs.float(), atol=1e-5, rtol=1e-5)


def draw(pipe: Any, own: Own, noise: torch.Tensor, guidance: float) -> torch.Tensor:
    """The latents that the adaptor ends with, from the same noise."""
    generator = torch.Generator().manual_seed(1)
    way = Way(STEPS, guidance, size=own.options.get("height"))
    pictures = draw_pictures(pipe, conditions(pipe, [PROMPT]), unprompted(pipe), way, generator)
    assert torch.equal(gaussian(noise, torch.Generator().manual_seed(1)), noise)
    return pictures


def test_it_predicts_what_the_pipeline_hears(case: tuple[Any, Own]) -> None:
    pipe, own = case
    noise, calls = start(pipe, own), Calls()
    calls.watch(pipe)
    by_itself(pipe, own, noise, 3.0)
    asked, nothing = conditions(pipe, [PROMPT]), unprompted(pipe)
    theirs = own.heard(calls.said[0])
    times = torch.full((1,), time_grid(pipe, STEPS, tuple(noise.shape[1:]))[0])
    embedded = adaptor_of(pipe).guides(pipe) == "embedded"
    with torch.no_grad():
        mine = predict(pipe, noise, times, asked, 3.0 if embedded else 1.0)
        other = predict(pipe, noise, times, nothing)
    assert (mine - other).abs().max() > 1e-5
    torch.testing.assert_close(own.pack(mine) if theirs.dim() == 3 else mine, theirs.float(), atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_text_encoders(case: tuple[Any, Own]) -> None:
    pipe, own = case
    noise, adaptor = start(pipe, own), adaptor_of(pipe)
    condition = adaptor.encode(pipe, [PROMPT])
    times = torch.full((1,), time_grid(pipe, STEPS, tuple(noise.shape[1:]))[1])
    predict(pipe, noise, times, condition).square().mean().backward()
    reached = {name: any_gradient(getattr(pipe, name)) for name in adaptor.encoders if getattr(pipe, name, None)}
    assert reached
    assert all(reached.values()), reached


def any_gradient(module: torch.nn.Module) -> bool:
    return any(weight.grad is not None and bool(weight.grad.any()) for weight in module.parameters())


def test_rows_are_independent(case: tuple[Any, Own]) -> None:
    pipe, own = case
    shape = adaptor_of(pipe).shape(pipe, own.options.get("height"))
    noisy = gaussian(torch.empty(3, *shape), torch.Generator().manual_seed(2))
    texts = [PROMPT, "a circle", "a red star on a blue square"]
    times = random_times(pipe, 3, torch.Generator().manual_seed(3), shape)
    with torch.no_grad():
        together = predict(pipe, noisy, times, conditions(pipe, texts))
        apart = [
            predict(pipe, noisy[i : i + 1], times[i : i + 1], conditions(pipe, texts[i : i + 1])) for i in range(3)
        ]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=1e-4)
    assert together.shape == noisy.shape


def test_noise_target_and_steps_agree(case: tuple[Any, Own]) -> None:
    pipe, own = case
    shape = adaptor_of(pipe).shape(pipe, own.options.get("height"))
    picture, noise = (gaussian(torch.empty(2, *shape), torch.Generator().manual_seed(seed)) for seed in (4, 5))
    grid = time_grid(pipe, 4, shape)
    times, before = (torch.full((2,), grid[number]) for number in (1, 2))
    noisy, perfect = noised(pipe, picture, times, noise), target_of(pipe, picture, times, noise)
    torch.testing.assert_close(clean(pipe, noisy, times, perfect), picture, atol=1e-4, rtol=1e-4)
    back = step_back(pipe, noisy, times, before, perfect)
    torch.testing.assert_close(back, noised(pipe, picture, before, noise), atol=1e-4, rtol=1e-4)
    end = step_back(pipe, noisy, times, torch.full((2,), -1), perfect)
    torch.testing.assert_close(end, picture, atol=1e-4, rtol=1e-4)
    drawn = random_times(pipe, 200, torch.Generator().manual_seed(6), shape)
    total = total_times(pipe)
    assert total * (pipe.scheduler.config.get("shift_terminal") or 0) <= drawn.min() < 0.3 * total
    assert 0.7 * total < drawn.max() <= total
    assert drawn.is_floating_point() == flows(pipe)


def test_every_adaptor_is_tried(tmp_path: Path) -> None:
    assert {type(adaptor_of(built(name, tmp_path / name))) for name in OWN} == {type(each) for each in ADAPTORS}


def test_conditions_keep_what_is_absent() -> None:
    one = Condition(torch.zeros(1, 2, 3), mask=torch.ones(1, 2))
    both = cat(one, one)
    assert both.pooled is None
    assert torch.equal(torch.as_tensor(both.mask), torch.ones(2, 2))
    assert one.expand(3).states.shape == (3, 2, 3)
    assert both.rows(torch.tensor([1])).pooled is None


def test_conditions_with_masks_are_padded_to_the_longest() -> None:
    short, long = (Condition(torch.ones(1, tokens, 3), mask=torch.ones(1, tokens)) for tokens in (2, 4))
    both = cat(short, long, short)
    assert torch.equal(torch.as_tensor(both.mask).sum(dim=1), torch.tensor([2.0, 4.0, 2.0]))
    assert torch.equal(both.states[..., 0], torch.as_tensor(both.mask))
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        cat(Condition(torch.ones(1, 2, 3)), Condition(torch.ones(1, 4, 3)))
