"""How far one step, and three, move what a network says: on the embedded model and at the size of Stable Diffusion 1.4.

    python benchmarks/rates.py --size shapes --out benchmarks/results/rates-shapes.json
    python benchmarks/rates.py --size sd14 --out benchmarks/results/rates-sd14.json     # 8 GB, minutes on a CPU
    python benchmarks/rates.py --table                                                  # both, as in README.md

`shapes` is the trained model on its own pictures, `sd14` random weights (those that the layers start from) on noise, in
float32 with latents of 16 x 16: a step of Adam has the same size whatever the pictures are. Changes are
||after - before|| / ||before||, of the denoiser's prediction and of the text encoder's states. Weights themselves take
the first step of Adam, -rate g / (|g| + epsilon), low-rank weights and soft tokens as many as the column says.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from architectures import CLIP_L, SD14_UNET
from torch import nn
from torch.nn import functional

from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.clip import encode
from erasers.diffusion.conditions import conditions
from erasers.diffusion.denoiser import predict
from erasers.diffusion.gradients import frozen
from erasers.diffusion.latent_bank import Way, draw_pictures
from erasers.diffusion.noise import middle_times, noised
from erasers.diffusion.rates import Rate
from erasers.diffusion.tokens import tokenise
from erasers.methods.adv_unlearn import text_layers
from erasers.methods.few_shot import trained_names
from erasers.methods.robust_ablation.pool import Pool
from erasers.methods.robust_ablation.relearner import Relearner
from erasers.methods.robust_ablation.soft_bank import SoftBank
from erasers.models.components import find_parameter
from erasers.models.feeding import feeds_of
from erasers.pipeline import load_pipeline
from erasers.training.layers import denoiser_layers
from erasers.training.student import Student, names_of

RESULTS = Path(__file__).parent / "results"
PROMPT, ANCHOR = "a red star on a white background", "a red circle on a white background"
STEPS = (1, 3)
Changes = tuple[float, float | None]
"""Of the prediction, and of the text states where these change."""


@dataclass(frozen=True)
class Row:
    """A rate and what it does.

    Args:
        what: Is stepped.
        rate: As given.
        used: The rate that it came to.
        steps: Of Adam.
        output: Change of the prediction.
        text: Change of the text states, where these change.
    """

    what: str
    rate: Rate
    used: float
    steps: int
    output: float
    text: float | None = None


@dataclass(frozen=True)
class Scene:
    """A pipeline with noised pictures of a prompt, and the same prompt with the anchor."""

    pipe: Any
    pool: Pool
    asked: Condition

    def output(self, condition: Condition | None = None) -> torch.Tensor:
        """What the denoiser predicts of the pictures."""
        return predict(self.pipe, self.pool.noisy, self.pool.times, condition or self.asked)

    def loss(self) -> torch.Tensor:
        """|| eps(x_t, c) - eps*(x_t, a) ||^2."""
        return functional.mse_loss(self.output(), self.pool.goal)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_pipe(unet: Mapping[str, Any], text: Mapping[str, Any], *, seed: int = 0) -> Any:
    """A Stable Diffusion 1 pipeline of random weights, with the embedded model's tokenizer and VAE.

    Args:
        unet: Options of the denoiser.
        text: Options of the text encoder.
        seed: Of the weights.
    """
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    own = load_pipeline("shapes")
    ids = {name: getattr(own.tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(seed)
    denoiser = UNet2DConditionModel(**unet)
    config = CLIPTextConfig(**text, **ids, max_position_embeddings=own.tokenizer.model_max_length)
    return StableDiffusionPipeline(
        vae=own.vae,
        text_encoder=CLIPTextModel(config).eval(),
        tokenizer=own.tokenizer,
        unet=denoiser.eval(),
        scheduler=own.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def scene(size: str) -> Scene:
    """The pipeline of a size, and two noised pictures."""
    if size == "shapes":
        pipe = load_pipeline("shapes")
        asked, empty = conditions(pipe, [PROMPT, PROMPT]), conditions(pipe, [""])
        pictures = draw_pictures(pipe, asked, empty, Way(20, 4.0), seeded())
    else:
        pipe = random_pipe(SD14_UNET | {"sample_size": 16}, CLIP_L)
        asked, pictures = conditions(pipe, [PROMPT, PROMPT]), torch.randn(2, 4, 16, 16, generator=seeded())
    return scene_of(pipe, pictures, asked)


@torch.no_grad()
def scene_of(pipe: Any, pictures: torch.Tensor, asked: Condition) -> Scene:
    """Pictures `[n, c, h, w]`, noised at times that are spread evenly."""
    count = len(pictures)
    times = torch.tensor(middle_times(pipe, count))
    noise = torch.randn(pictures.shape, generator=seeded(1))
    noisy = noised(pipe, pictures, times, noise)
    anchor = Condition(conditions(pipe, [ANCHOR]).states.expand(count, -1, -1))
    goal = predict(pipe, noisy, times, anchor)
    return Scene(pipe, Pool(noisy, times, noise, torch.zeros(count, dtype=torch.long), goal), asked)


def share(after: torch.Tensor, before: torch.Tensor) -> float:
    """||after - before|| / ||before||."""
    return float((after.detach() - before.detach()).norm() / before.detach().norm())


def relearned(here: Scene, rate: Rate, rank: int = 8, steps: Sequence[int] = STEPS) -> Iterator[Row]:
    """The attack on attention that learns a concept anew, as a training and as a benchmark have it."""
    relearner = Relearner(here.pipe, rank, rate, seeded(5))
    if isinstance(rate, str):
        relearner.measure(here.pool, here.asked)
    used, before, done = relearner.optimizer.param_groups[0]["lr"], here.output(), 0
    for count in steps:
        relearner.learn(here.pool, here.asked, count - done)
        done = count
        with torch.no_grad(), relearner.added():
            yield Row(f"low-rank weights that relearn (rank {rank})", rate, used, count, share(here.output(), before))


def soft(here: Scene, rate: Rate, steps: Sequence[int] = STEPS) -> Iterator[Row]:
    """Soft tokens of the bank that attack."""
    bank, rows = SoftBank(here.pipe, 8, (1, 2, 4), seeded(3)), torch.arange(len(here.pool.times))
    used, done = bank.rate(rate), 0
    adam = torch.optim.Adam([bank.vectors], lr=used)
    with torch.no_grad():
        before = bank.condition(rows)
    for count in steps:
        for _ in range(count - done):
            loss = functional.mse_loss(here.output(bank.condition(rows)), here.pool.truth)
            (bank.vectors.grad,) = torch.autograd.grad(loss, [bank.vectors])
            adam.step()
        done = count
        with torch.no_grad():
            after = bank.condition(rows)
            changed = share(here.output(after), here.output(before))
        yield Row("soft tokens", rate, used, count, changed, share(after.states, before.states))


def low_rank(here: Scene, rate: float, steps: Sequence[int] = STEPS) -> Iterator[Row]:
    """The student of robust_ablation, in all linear layers."""
    names = names_of(here.pipe, "unet", denoiser_layers("all"))
    student = Student(here.pipe, names, rank=16, generator=seeded())
    adam, before, done = torch.optim.Adam(student.parameters, lr=rate), here.output(), 0
    for count in steps:
        for _ in range(count - done):
            with student.placed():
                student.backward(here.loss())
            adam.step()
        done = count
        with torch.no_grad(), student.placed():
            yield Row("student of robust_ablation (rank 16)", rate, rate, count, share(here.output(), before))


def dense(here: Scene, what: str, network: str, wanted: Any, rate: float, epsilon: float = 1e-8) -> Row:
    """Weights themselves, after the first step of Adam."""
    names = wanted if isinstance(wanted, list) else names_of(here.pipe, network, wanted)
    weights = [find_parameter(here.pipe, name, linear=False) for name in names]

    def states() -> torch.Tensor:
        return encode(here.pipe, tokenise(here.pipe, [PROMPT] * len(here.pool.times)))

    def asked() -> Condition:
        return Condition(states()) if network == "text_encoder" else here.asked

    with torch.no_grad():
        text, before = states(), here.output(asked())
    for weight in weights:
        weight.requires_grad_(True)
    loss = functional.mse_loss(here.output(asked()), here.pool.goal)
    slopes = torch.autograd.grad(loss, weights, allow_unused=True)
    for weight in weights:
        weight.requires_grad_(False)
    with stepped(weights, slopes, rate, epsilon), torch.no_grad():
        changed = share(here.output(asked()), before)
        moved = share(states(), text) if network == "text_encoder" else None
    return Row(what, rate, rate, 1, changed, moved)


@contextmanager
def stepped(
    weights: Sequence[nn.Parameter], slopes: Sequence[torch.Tensor | None], rate: float, epsilon: float
) -> Iterator[None]:
    """Inside, the weights are where the first step of Adam takes them."""
    moves = [None if slope is None else slope.div_(slope.abs().add_(epsilon)).mul_(-rate) for slope in slopes]
    for weight, move in zip(weights, moves, strict=True):
        if move is not None:
            weight.data.add_(move)
    try:
        yield
    finally:
        for weight, move in zip(weights, moves, strict=True):
            if move is not None:
                weight.data.sub_(move)


def rows(here: Scene, size: str) -> Iterator[Row]:
    """All rates of a size: those that were absolute, those of the rule, and those of students."""
    shapes = size == "shapes"
    with frozen(here.pipe):
        for rate in (5e-3, 1e-3, "auto"):
            yield from relearned(here, rate)  # type: ignore[arg-type]
        for token in (0.02, 0.08, 1e-3, "auto"):
            yield from soft(here, token)  # type: ignore[arg-type]
        yield from low_rank(here, 2e-3 if shapes else 2e-4)
        text, blocks = "text_encoder", text_layers(0, feeds_of(here.pipe)["text_encoder"])
        yield dense(here, "student of few_shot", text, trained_names(here.pipe), 1e-3 if shapes else 1e-5, 1e-6)
        yield dense(here, "student of adv_unlearn", text, blocks, 1e-3 if shapes else 1e-5)
        yield dense(here, "student of doco", "unet", denoiser_layers("x-strict"), 4e-4 if shapes else 4.8e-5)
        yield dense(here, "student of esd (x)", "unet", denoiser_layers("x"), 3e-4 if shapes else 1e-5)
        yield dense(here, "student of esd (u)", "unet", denoiser_layers("u"), 3e-4 if shapes else 1e-5)


def table(results: Mapping[str, Sequence[Row]]) -> str:
    """Markdown: a line for each row of a size; the text column is empty where the text states stay."""
    lines = ["| size | what | rate | steps | prediction | text states |", "|---|---|---|---|---|---|"]
    for size, own in results.items():
        for row in own:
            rate = f"auto: {row.used:.2g}" if row.rate == "auto" else f"{row.used:g}"
            text = "" if row.text is None else f"{row.text:.1%}"
            lines.append(f"| {size} | {row.what} | {rate} | {row.steps} | {row.output:.1%} | {text} |")
    return "\n".join(lines)


def main(say: Callable[[str], Any] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("shapes", "sd14"), default="shapes")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--table", action="store_true", help="print the committed results")
    given = parser.parse_args()
    if given.table:
        files = {size: RESULTS / f"rates-{size}.json" for size in ("shapes", "sd14")}
        say(table({size: [Row(**row) for row in json.loads(file.read_text())["rows"]] for size, file in files.items()}))
        return
    made = []
    for row in rows(scene(given.size), given.size):
        made.append(row)
        say(f"{row.what}, {row.rate}: {row.steps} steps, {row.output:.3f}, {row.text}")
    if given.out:
        given.out.write_text(json.dumps({"size": given.size, "rows": [asdict(row) for row in made]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
