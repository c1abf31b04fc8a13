"""Every adaptor does what its pipeline does: the same prediction at every step, and the same latents in the end."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from PIL import Image
from support.families.all import FAMILIES
from support.families.variants import build as build_variant
from support.selection import only

from erasers.diffusion.adaptors.condition import Condition, cat
from erasers.diffusion.adaptors.packs import packed
from erasers.diffusion.adaptors.table import ADAPTORS, adaptor_of, denoisers_of
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.denoiser import predict
from erasers.diffusion.draws import gaussian
from erasers.diffusion.latent_bank import Way, draw_pictures
from erasers.diffusion.latents import latents_of
from erasers.diffusion.needs import Pass, denoiser_flops, need_of
from erasers.diffusion.noise import (
    clean,
    flows,
    middle_times,
    noised,
    random_times,
    step_back,
    target_of,
    time_grid,
    total_times,
)

# numpy's, about diffusers' DPM-solver.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PROMPT, STEPS = "a red star", 3


def same(latents: torch.Tensor) -> torch.Tensor:
    return latents


def last(said: torch.Tensor) -> torch.Tensor:
    return said[-1:]


def unchanged(pipe: Any) -> None:
    pass


@dataclass(frozen=True)
class Own:
    """How a family's pipeline is called by itself.

    Args:
        options: Of the call.
        build: Makes the tiny pipeline; None: that of its name.
        guidance: Name of the guidance scale in the call.
        pack: Latents as the pipeline takes them.
        end: Latents as the pipeline returns them; None: as it takes them.
        heard: What the denoiser said of a latent without and with the prompt -> the prediction that follows the prompt.
        change: Makes the tiny pipeline more like those that people use.
        half: It keeps latents in half precision where its denoiser has that.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    build: Callable[[Path], Any] | None = None
    guidance: str = "guidance_scale"
    pack: Callable[[torch.Tensor], torch.Tensor] = same
    end: Callable[[Any, torch.Tensor], torch.Tensor] | None = None
    heard: Callable[[torch.Tensor], torch.Tensor] = last
    change: Callable[[Any], None] = unchanged
    half: bool = True


def multistep(pipe: Any) -> None:
    """The scheduler that Sana comes with."""
    pipe.scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def known_spread(pipe: Any) -> None:
    """What VAEs of videos know of their channels."""
    pipe.vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.5, 1.5, 2.0, 1.0])


def qwen(pipe: Any) -> None:
    """The schedule that Qwen-Image comes with."""
    known_spread(pipe)
    pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, shift_terminal=0.02)


def two_denoisers(pipe: Any) -> None:
    """Wan 2.2: another denoiser below a share of the times, and a time for each token."""
    known_spread(pipe)
    second = copy.deepcopy(pipe.transformer)
    with torch.no_grad():
        for weight in second.parameters():
            weight.mul_(1.1)
    pipe.register_modules(transformer_2=second)
    pipe.register_to_config(boundary_ratio=0.9, expand_timesteps=True)


def gathered(pipe: Any) -> None:
    """Statistics that training left in the VAE of FLUX.2."""
    generator, norm = torch.Generator().manual_seed(7), pipe.vae.bn
    norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator))
    norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)


def as_vae(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents of FLUX.2 as its VAE decodes them."""
    centre, variance = (value.view(1, -1, 1, 1) for value in (pipe.vae.bn.running_mean, pipe.vae.bn.running_var))
    return pipe._unpatchify_latents(latents * (variance + pipe.vae.config.batch_norm_eps).sqrt() + centre)


def as_tokens(said: torch.Tensor) -> torch.Tensor:
    """Places of FLUX.2 `[n, h w, c]` as the adaptor has them."""
    side = int(said.shape[1] ** 0.5)
    return said[-1:].transpose(1, 2).unflatten(-1, (side, side))


SMALL, BIGGER = {"height": 16, "width": 16}, {"height": 32, "width": 32}
UNBINNED = {"use_resolution_binning": False}
OWN: dict[str, Own] = {
    "sd1": Own(),
    "sdxl": Own(),
    "sd3": Own(),
    "flux": Own(SMALL, pack=packed),
    "flux2": Own(SMALL, end=lambda pipe, latents: pipe._pack_latents(latents), heard=as_tokens),
    "klein": Own(
        SMALL, build=partial(build_variant, "Flux2KleinPipeline"), end=as_vae, heard=as_tokens, change=gathered
    ),
    "klein-distilled": Own(
        SMALL,
        build=partial(build_variant, "Flux2KleinPipeline"),
        end=as_vae,
        heard=as_tokens,
        change=lambda pipe: pipe.register_to_config(is_distilled=True),
    ),
    "chroma": Own(SMALL, pack=packed),
    "qwenimage": Own(
        {**SMALL, "negative_prompt": " "},
        guidance="true_cfg_scale",
        pack=packed,
        change=qwen,
    ),
    "zimage": Own(SMALL, heard=lambda said: -said[:1, :, 0], half=False),
    "pixart": Own({**SMALL, **UNBINNED}, heard=lambda said: said[-1:].chunk(2, dim=1)[0]),
    "pixart-sigma": Own({**SMALL, **UNBINNED}, heard=lambda said: said[-1:].chunk(2, dim=1)[0]),
    "sana": Own({**BIGGER, **UNBINNED}, half=False),
    "sana-multistep": Own({**BIGGER, **UNBINNED}, build=FAMILIES["sana"].build, change=multistep, half=False),
    "wan": Own({**BIGGER, "num_frames": 1}, half=False),
    "wan22": Own({**BIGGER, "num_frames": 1}, build=FAMILIES["wan"].build, change=two_denoisers, half=False),
    "lumina2": Own(heard=lambda said: -said[-1:]),
    "cogview4": Own(SMALL, half=False),
    "auraflow": Own(SMALL),
}
"""Tiny pipeline -> how it is called."""


def built(name: str, folder: Path) -> Any:
    pipe = (OWN[name].build or FAMILIES[name].build)(folder)
    pipe.set_progress_bar_config(disable=True)
    OWN[name].change(pipe)
    if not adaptor_of(pipe).flow:
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


@pytest.fixture(params=only(OWN, *(OWN.keys() - {"klein-distilled", "pixart-sigma", "sana", "wan"})))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Own]:
    return built(request.param, tmp_path), OWN[request.param]


def test_it_ends_with_the_latents_of_the_pipelines_own_loop(case: tuple[Any, Own]) -> None:
    pipe, own = case
    noise = start(pipe, own)
    mine = draw(pipe, own, noise, 3.0)
    theirs = by_itself(pipe, own, noise, 3.0)
    ended = own.pack(mine) if own.end is None else own.end(pipe, mine)
    torch.testing.assert_close(ended, theirs.float(), atol=1e-5, rtol=1e-5)


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


@pytest.mark.full
def test_half_precision_hears_the_same(case: tuple[Any, Own]) -> None:
    pipe, own = case
    noise, calls = start(pipe, own).bfloat16(), Calls()
    times = torch.full((1,), time_grid(pipe.to(torch.bfloat16), STEPS, tuple(noise.shape[1:]))[0])
    calls.watch(pipe)
    # Where pipelines keep latents in float32, noise that bfloat16 can hold is the same.
    by_itself(pipe, own, noise if own.half else noise.float(), 3.0)
    theirs = own.heard(calls.said[0])
    embedded = adaptor_of(pipe).guides(pipe) == "embedded"
    with torch.no_grad():
        mine = predict(pipe, noise, times, conditions(pipe, [PROMPT]), 3.0 if embedded else 1.0)
    assert mine.dtype == torch.float32
    torch.testing.assert_close(own.pack(mine) if theirs.dim() == 3 else mine, theirs.float(), atol=2e-2, rtol=1e-2)


def test_gradients_reach_the_text_encoders(case: tuple[Any, Own]) -> None:
    """Through blocks that are computed again, which say what they say without gradients."""
    pipe, own = case
    noise, adaptor = start(pipe, own), adaptor_of(pipe)
    condition = adaptor.encode(pipe, [PROMPT])
    times = torch.full((1,), time_grid(pipe, STEPS, tuple(noise.shape[1:]))[1])
    with torch.no_grad():
        wanted = predict(pipe, noise, times, condition)
    for denoiser in denoisers_of(pipe).values():
        denoiser.enable_gradient_checkpointing()
    predicted = predict(pipe, noise, times, condition)
    predicted.square().mean().backward()
    torch.testing.assert_close(predicted, wanted, atol=1e-5, rtol=1e-5)
    reached = {name: any_gradient(getattr(pipe, name)) for name in adaptor.encoders if getattr(pipe, name, None)}
    assert reached
    assert all(reached.values()), reached


def any_gradient(module: torch.nn.Module) -> bool:
    return any(weight.grad is not None and bool(weight.grad.any()) for weight in module.parameters())


def test_rows_are_independent(case: tuple[Any, Own]) -> None:
    pipe, own = case
    shape = adaptor_of(pipe).shape(pipe, own.options.get("height"))
    noisy = gaussian(torch.empty(3, *shape), torch.Generator().manual_seed(2))
    texts = [PROMPT, "a circle", "a red star on a blue square and a green heart on a red circle and a ring"]
    times = random_times(pipe, 3, torch.Generator().manual_seed(3), shape)
    with torch.no_grad():
        together = predict(pipe, noisy, times, adaptor_of(pipe).encode(pipe, texts))
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


def test_random_times_follow_the_familys_own_shift(case: tuple[Any, Own]) -> None:
    pipe, own = case
    shape = adaptor_of(pipe).shape(pipe, own.options.get("height"))
    halfway = [median(times(pipe, 50, shape)) for times in (time_grid, middle_times)]
    assert abs(halfway[0] - halfway[1]) < (0.012 if flows(pipe) else 0.05) * total_times(pipe)


@pytest.mark.parametrize("name", only(OWN, "sdxl", "qwenimage", "zimage", "wan22", "lumina2", "cogview4"))
def test_it_is_counted_in_shapes_alone(name: str, tmp_path: Path) -> None:
    pipe, own = built(name, tmp_path), OWN[name]
    size, (component, denoiser) = own.options.get("height"), next(iter(denoisers_of(pipe).items()))
    trained = [f"{component}.{name}" for name, _ in denoiser.named_parameters()]
    more, less = (need_of(pipe, Pass(1, weights, size=size)).sample for weights in (trained, trained[-2:]))
    assert more > less > 0
    assert denoiser_flops(pipe, size) > 0


def test_latents_of_pictures_are_as_the_denoiser_reads_them(case: tuple[Any, Own]) -> None:
    pipe, own = case
    size = own.options.get("height", 64)
    picture = Image.effect_noise((size, size), 60).convert("RGB")
    latents = latents_of(pipe, [picture, picture])
    assert latents.shape == (2, *adaptor_of(pipe).shape(pipe, size))
    assert torch.equal(latents[0], latents[1])
    decoded = DECODED.get(type(pipe.vae).__name__, as_plain)(pipe, latents)
    processor = getattr(pipe, "image_processor", None) or pipe.video_processor
    with torch.no_grad():
        wanted = pipe.vae.encode(videos(pipe, processor.preprocess([picture, picture])))
    mean = wanted.latent_dist.mean if hasattr(wanted, "latent_dist") else wanted.latent
    torch.testing.assert_close(decoded, mean, atol=1e-5, rtol=1e-5)


def videos(pipe: Any, pixels: torch.Tensor) -> torch.Tensor:
    return pixels[:, :, None] if type(pipe.vae).__name__ in ("AutoencoderKLWan", "AutoencoderKLQwenImage") else pixels


def as_plain(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """As pipelines undo what they do to latents before they decode them."""
    return latents / pipe.vae.config.scaling_factor + (pipe.vae.config.get("shift_factor") or 0.0)


def as_video(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """The same for the VAEs of videos."""
    latents = latents if latents.dim() == 5 else latents[:, :, None]
    spread, mean = (torch.tensor(pipe.vae.config[name]) for name in ("latents_std", "latents_mean"))
    return latents * spread.view(1, -1, 1, 1, 1) + mean.view(1, -1, 1, 1, 1)


DECODED = {"AutoencoderKLFlux2": as_vae, "AutoencoderKLWan": as_video, "AutoencoderKLQwenImage": as_video}


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
