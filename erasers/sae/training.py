"""Trains a sparse autoencoder on rows of a text encoder (Tian et al., arXiv 2503.09446) or of a denoiser
(Cywinski and Deja, arXiv 2501.18052)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from erasers.files.atomic import write_atomically
from erasers.files.checkpoint import SECONDS, CheckpointFile, optimizer_tensors, restore_optimizer
from erasers.options import check_fields, require_above, require_least
from erasers.sae.autoencoder import (
    ACTIVATIONS,
    AUXILIARY_SCALE,
    SAE,
    Activation,
    Quality,
    geometric_median,
    quality,
    unexplained,
)
from erasers.sae.rows import Rows

Told = Callable[[int, str], None]


@dataclass(frozen=True, kw_only=True)
class SAETraining:
    """How an autoencoder is trained.

    Adam with a warm-up and a linear decay over the last fifth; columns of W_d are unit vectors after every step.

    Differs from both official codes: a feature is dead after `dead_after` rows, which the training must reach, where
    the number published for text lies beyond its end, so that no feature ever was; what dead features explain is the
    error itself, without b_pre and with its own sign; the first token, the same in every prompt, is left out;
    `batchtopk` is the default.

    Args:
        features: n.
        k: Active features a row.
        activation: `topk` or `batchtopk`.
        steps: Of the optimizer.
        prompts: A batch; of a denoiser, the pictures that are drawn together.
        lr: Learning rate.
        warmup: Steps until that is reached.
        auxiliary: Dead features that explain what is left, for every row; 0 leaves them dead.
        dead_after: Rows without activity after which a feature is dead.
        seed: Of the directions of features and of the order of prompts.
    """

    features: int = 4096
    k: int = 32
    activation: Activation = "batchtopk"
    steps: int = 4000
    prompts: int = 50
    lr: float = 1e-3
    warmup: int = 100
    auxiliary: int = 256
    dead_after: int = 100_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        require_least(self, features=1, k=1, steps=1, prompts=1, warmup=0, auxiliary=0, dead_after=1, seed=0)
        if self.k > self.features:
            raise ValueError(f"expected k of at most {self.features} features, got {self.k}")
        require_above("lr", self.lr, 0)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"expected activation among {', '.join(ACTIVATIONS)}, got {self.activation!r}")

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        decay = min(1.0, (self.steps - step) / max(1.0, 0.2 * self.steps))
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup)) * decay


@dataclass(frozen=True)
class Trained:
    """What a training gives.

    Args:
        sae: The autoencoder.
        quality: Measured on prompts that it was not trained on.
        curves: Name -> one value a step: unexplained (share of the variance), auxiliary, dead (share), threshold.
    """

    sae: SAE
    quality: Quality
    curves: dict[str, list[float]]


def train_sae(
    rows: Rows,
    training: SAETraining,
    *,
    checkpoint: Path | None = None,
    seconds_between_checkpoints: float = SECONDS,
    tell: Told = lambda count, text: None,
) -> Trained:
    """Train an autoencoder on rows, which are made step by step, where the model is that makes them.

    Args:
        rows: Where they come from.
        training: How.
        checkpoint: A file written now and then; a training that finds it goes on from it, on a CPU bit for bit.
        seconds_between_checkpoints: At least so many; more where writing is slow.
        tell: Called with the steps that were done and what to show.

    Raises:
        ValueError: Too few rows for these settings, or a checkpoint of another training.
    """
    a_step, width = rows.step(0).shape
    # Prompts differ in length, so that other steps may have more rows or fewer.
    count = training.steps * a_step
    if training.auxiliary and training.dead_after >= count:
        raise ValueError(
            f"expected dead_after below the rows of the training, about {count}, got {training.dead_after}"
        )
    run, where = _Run(training, width, rows.device), rows.device
    saved = None
    if checkpoint is not None:
        saved = CheckpointFile(checkpoint, _identity(rows, training), seconds_between_checkpoints)
    if saved is None or not _resumed(run, saved):
        run.sae.b_pre.data.copy_(geometric_median(rows.first().to(where)))
    tell(run.done, "")
    while run.done < training.steps:
        tell(1, run.step(rows.step(run.done).to(where)))
        if saved is not None:
            saved.save(run.state)
    for parameter in run.sae.parameters():
        parameter.requires_grad_(False)
    measured = quality(run.sae, (batch.to(where) for batch in rows.held()))
    return Trained(run.sae.cpu(), measured, run.curves)


class _Run:
    """A training on its way."""

    def __init__(self, training: SAETraining, width: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(training.seed)
        self.training = training
        sae = SAE(width, training.features, training.k, activation=training.activation, generator=generator)
        self.sae = sae.to(device)
        self.adam = torch.optim.Adam(self.sae.parameters(), lr=training.lr, betas=(0.9, 0.999), eps=6.25e-10)
        self.silent = torch.zeros(training.features, dtype=torch.int64, device=device)
        self.curves: dict[str, list[float]] = {"unexplained": [], "auxiliary": [], "dead": [], "threshold": []}

    @property
    def done(self) -> int:
        """Steps so far."""
        return len(self.curves["unexplained"])

    def step(self, x: torch.Tensor) -> str:
        """One step on rows `[N, d]`; what to show of it."""
        sae, training = self.sae, self.training
        codes = sae.encode_batch(x)
        guess = sae.decode(codes)
        loss = unexplained(x, guess)
        dead = self.silent >= training.dead_after
        extra = x.new_zeros(())
        if training.auxiliary and dead.any():
            extra = sae.auxiliary(x, (x - guess).detach(), dead, training.auxiliary)
        self.adam.zero_grad()
        (loss + AUXILIARY_SCALE * extra).backward()
        sae.keep_norms()
        for group in self.adam.param_groups:
            group["lr"] = training.rate(self.done)
        self.adam.step()
        sae.normalise()
        self._count(codes.features, len(x))
        self._follow(codes.values.detach())
        self._note(float(loss.detach()), float(extra.detach()), float(dead.double().mean()))
        return f"unexplained {self.curves['unexplained'][-1]:.3f}, dead {self.curves['dead'][-1]:.0%}"

    def _count(self, active: torch.Tensor, rows: int) -> None:
        self.silent += rows
        self.silent[active] = 0

    def _follow(self, values: torch.Tensor) -> None:
        """The least value that counted in a batch, averaged over batches."""
        if self.training.activation == "batchtopk" and len(values):
            least = values.min()
            share = 1.0 if not self.done else 0.02
            self.sae.threshold.lerp_(least[None], share)

    def _note(self, loss: float, extra: float, dead: float) -> None:
        values = {"unexplained": loss, "auxiliary": extra, "dead": dead, "threshold": float(self.sae.threshold)}
        for name, value in values.items():
            self.curves[name].append(value)

    def state(self) -> dict[str, torch.Tensor]:
        """All that a training goes on from."""
        weights = {f"sae/{name}": value.detach() for name, value in self.sae.state_dict().items()}
        curves = {f"curves/{name}": torch.tensor(values, dtype=torch.float64) for name, values in self.curves.items()}
        return {**weights, **optimizer_tensors(self.adam, "adam"), **curves, "silent": self.silent}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from such a state."""
        self.sae.load_state_dict({name: tensors[f"sae/{name}"] for name in self.sae.state_dict()})
        restore_optimizer(self.adam, tensors, "adam")
        self.curves = {name: tensors[f"curves/{name}"].tolist() for name in self.curves}
        self.silent = tensors["silent"].to(self.silent.device)


def _resumed(run: _Run, file: CheckpointFile) -> bool:
    """Set a training to what its checkpoint says; whether there was one.

    Raises:
        ValueError: A damaged file, or one of another training.
    """
    with file.read("another model, option or set of prompts") as tensors:
        if tensors:
            run.restore(tensors)
        return bool(tensors)


def _identity(rows: Rows, training: SAETraining) -> str:
    facts = [rows.target, rows.fingerprints(), asdict(training), rows.identity()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def draw_curves(curves: dict[str, list[float]], path: Path) -> None:
    """A picture of the curves of a training."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3), layout="constrained")
    for axis, (name, values) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        axis.plot(values, linewidth=1)
        axis.set(title=name, xlabel="step")
        if name == "unexplained" and values and min(values) > 0:
            axis.set_yscale("log")
    write_atomically(path, lambda file: figure.savefig(file, dpi=110, format="png"))
