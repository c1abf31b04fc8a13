"""The loop that trained erasers share: what is trained, what lives through it, checkpoints, progress and cost."""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from rich.console import Console

from erasers.concept import Concept, Concepts
from erasers.diffusion.adaptors.table import denoiser_of, denoisers_of
from erasers.diffusion.batches import at_most
from erasers.diffusion.conditions import conditions
from erasers.diffusion.counting import Calls, Counter
from erasers.diffusion.denoiser import predict
from erasers.diffusion.gradients import frozen, mixed
from erasers.diffusion.latents import latent_shape
from erasers.diffusion.memory import free_memory, memory_told
from erasers.diffusion.supported import check_clip_skip
from erasers.eraser import Eraser
from erasers.files.checkpoint import SECONDS, CheckpointFile, optimizer_tensors, restore_optimizer
from erasers.models.calls import tokens_a_prompt
from erasers.models.feeding import warn_of_missed_encoders
from erasers.options import Auto, known, require_above, require_least
from erasers.patch import Patch
from erasers.patch.build import concept_meta
from erasers.processes import (
    agreed,
    anywhere,
    everywhere,
    own_draws,
    own_file,
    rank_and_world,
    same_start,
    shared_gradients,
)
from erasers.progress import progress as bar
from erasers.training.foretelling import Demand, Foretold, Split, foretell
from erasers.training.pictures import pixels_hash
from erasers.training.recomputing import checkpointed
from erasers.training.student import Student
from erasers.training.suiting import Kind, kind_of

Stage = Callable[[str, int], Any]
"""(title, total) -> a context with a function that is told of what was done."""

_BETTER = 0.99
_LATER: Mapping[str, Any] = {"size": "auto", "encoders": (), "max_sequence_length": None}
"""Fields that came when there were checkpoints already, with their defaults."""


@dataclass
class Training:
    """A training on its way: what a method hands to the loop.

    Args:
        student: What is trained.
        step: One iteration, called with its number; returns the losses to show. The first one named counts for
            `patience`.
        optimizers: By name; their states belong to a checkpoint.
        tensors: What else changes, by name, and is changed in place; belongs to a checkpoint, too.
        stop: Asked after every iteration whether training is over; says why, or "".
    """

    student: Student
    step: Callable[[int], Mapping[str, float]]
    optimizers: Mapping[str, torch.optim.Optimizer]
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    stop: Callable[[], str] = lambda: ""


@dataclass(frozen=True, kw_only=True)
class TrainedEraser(Eraser, ABC):
    """A method that trains weights of the pipeline for a number of iterations.

    Args:
        iterations: Steps of the optimizer.
        lr: Its learning rate.
        rank: 0 trains the weights themselves; otherwise low-rank additions to linear layers, for a smaller patch.
        size: Of pictures that are drawn to learn from, in pixels; none: the model's own.
        patience: Stop when the mean loss of so many iterations is not below 99 % of that of as many before; 0 never
            stops early.
        gradient_checkpointing: Less memory for more time; False: only where the memory does not hold one latent
            without it.
        clip_skip: Last layers of CLIP that are left out, where pictures are drawn with the pipeline's `clip_skip`.
        max_sequence_length: Tokens that a prompt is padded or cut to, where the pipeline takes that; None: its default.

    A field may be "auto": then it is what `suits` has for the kind of the pipeline's denoiser.
    """

    trains: ClassVar[bool] = True
    suits: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {}
    """What "auto" is: values of fields by the kind of denoiser, or functions of the pipeline that give them."""

    iterations: int | Auto = 1000
    lr: float | Auto = 1e-5
    rank: int | Auto = 0
    size: int | Auto | None = None
    patience: int = 0
    gradient_checkpointing: bool = False
    clip_skip: int | None = None
    max_sequence_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, iterations=1, rank=0, size=1, patience=0, clip_skip=0, max_sequence_length=1)
        if self.lr != "auto":
            require_above("lr", self.lr, 0)
        for name in ("iterations", "lr", "rank", "size"):
            if getattr(self, name) == "auto" and not any(name in values for values in self.suits.values()):
                raise ValueError(f"expected {name} as a number, got 'auto', of which {self.name} knows nothing")

    def suited(self, pipe: Any) -> Self:
        """The same with what suits a pipeline in the place of every "auto" of which `suits` knows."""
        suits = self.suits.get(kind_of(pipe), {}) if self.suits else {}
        left = {name: value for name, value in suits.items() if getattr(self, name) == "auto"}
        return replace(self, **{name: value(pipe) if callable(value) else value for name, value in left.items()})

    @abstractmethod
    def prepare(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, stage: Stage) -> Training:
        """Do what is done once, and return what the loop needs; the pipeline asks for no gradients meanwhile."""

    @abstractmethod
    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """What `fit` will put through the networks when it does not stop early."""

    @abstractmethod
    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """What `fit` will hold in memory; the weights of the pipeline may be on the meta device."""

    def foretell(self, pipe: Any, concepts: Concepts) -> Foretold:
        """What `fit` will need, by counting: nothing is drawn or trained.

        Args:
            pipe: A pipeline that `check_pipe` takes; its weights may be on the meta device.
            concepts: What would be erased.
        """
        self.check_pipe(pipe)
        check_clip_skip(pipe, self.clip_skip)
        own = self.suited(pipe)
        with tokens_a_prompt(pipe, self.max_sequence_length):
            calls, demand = own.cost(pipe, concepts), own.demand(pipe, concepts)
            return foretell(pipe, calls, demand, rank=known(own.rank), size=known(own.size))

    def split(self, pipe: Any, concepts: Concepts, memory: int | None = None) -> Split | None:
        """How the training fits the memory there is; None: no bounds.

        Args:
            pipe: The pipeline.
            concepts: What is erased.
            memory: Bytes that there are for all; None: what its device has, or a CPU without bounds.

        Raises:
            ValueError: So little memory that not one latent fits.
        """
        budget = free_memory(pipe) if memory is None else memory
        if budget is None:
            return None
        foretold = self.foretell(pipe, concepts)
        # What is free is an estimate: one at a time is worth a try.
        room = budget if memory is not None else max(budget, foretold.memory(1, True))
        split = foretold.split(room, checkpointing=self.gradient_checkpointing)
        # Where the largest batch with gradients fits whole, larger ones without gradients do, too.
        return None if split == foretold.split(None, checkpointing=self.gradient_checkpointing) else split

    @abstractmethod
    def check_pipe(self, pipe: Any) -> None:
        """Refuse a pipeline that the method cannot train.

        Raises:
            UnsupportedPipeline: Lists those that it can.
        """

    def fit(
        self,
        pipe: Any,
        concepts: Concepts,
        *,
        generator: torch.Generator | None = None,
        progress: bool = True,
        checkpoint: str | Path | None = None,
        seconds_between_checkpoints: float = SECONDS,
        memory: int | None = None,
    ) -> Patch:
        """Train a patch; see `Eraser.fit`.

        In several processes of `torch.distributed` (one for each GPU: `accelerate launch`), each trains on pictures and
        attacks of its own and all take the mean of the gradients, so that they end with the same patch.

        Args:
            pipe: A pipeline that `check_pipe` takes.
            concepts: What is erased.
            generator: Source of every random number; seed 0 when None.
            progress: Show bars on stderr, and what was spent in the end.
            checkpoint: A file that is written now and then, in at most a twentieth of the time. If it is there, and of
                the same training, that goes on from it; on a CPU the patch is then bit for bit that of an unbroken
                training. It stays there until `discard_checkpoint`.
            seconds_between_checkpoints: At least so many; more where writing is slow.
            memory: Bytes that there are, by which batches are split where gradients are taken, and activations are
                computed again where one latent does not fit otherwise; None: what the device has, and on a CPU as much
                as it takes. Gradients are the same but for rounding.

        Raises:
            ValueError: A checkpoint of another training, concepts that cannot be erased so, or too little memory.
        """
        self.check_pipe(pipe)
        check_clip_skip(pipe, self.clip_skip)
        own, concepts = self.suited(pipe), self.prepared(pipe, concepts)
        generator = generator or torch.Generator().manual_seed(0)
        split = own.split(pipe, concepts, memory)
        identity: dict[str, Any] = {
            "seed": _digest({"": generator.get_state()}),
            "concepts": [concept_meta(concept) for concept in concepts],
            "templates": [concept.templates for concept in concepts],
            "images": [pixels_hash(image) for concept in concepts for image in concept.images] if self.sees else [],
        }
        console = Console(stderr=True) if progress and rank_and_world()[0] == 0 else None
        with (
            tokens_a_prompt(pipe, self.max_sequence_length),
            without_dropout(pipe),
            frozen(pipe),
            Counter(pipe) as counter,
            _memory(pipe, split.checkpointing if split else own.gradient_checkpointing),
            mixed(pipe),
            at_most(split.together if split else None),
            memory_told(),
        ):
            own_draws(generator)
            training = own.prepare(pipe, concepts, generator, partial(bar, console))
            edited = {name.partition(".")[0] for name in training.student.names}
            if edited:
                warn_of_missed_encoders(pipe, edited, "name it in encoders to train it, too")
            same_start(training.student.parameters)
            config, base = _known_before(self.config()), training.student.fingerprints()
            identity |= {"method": self.name, "config": config, "base": base}
            saved = None
            if checkpoint is not None:
                # Every process has draws, attacks and optimizers of its own.
                digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
                saved = _Checkpoint(CheckpointFile(own_file(checkpoint), digest, seconds_between_checkpoints))
            with shared_gradients(list(training.optimizers.values()), training.student.parameters):
                why = own._run(training, generator, saved, console)
            patch = training.student.patch(self, concepts)
        if console is not None:
            skipped = training.student.scale.skipped
            lost = f"; {skipped} steps left out, whose gradients float16 had no room for" if skipped else ""
            console.print(f"{self.name}: {why}; {counter.calls}{lost}", highlight=False)
        return patch

    def _run(
        self, training: Training, generator: torch.Generator, saved: _Checkpoint | None, console: Console | None
    ) -> str:
        losses: list[float] = []
        if saved is not None:
            losses = saved.load(training, generator)
        iterations = known(self.iterations)
        with bar(console, self.name, iterations) as advance:
            advance(len(losses))
            while len(losses) < iterations:
                shown = training.step(len(losses))
                losses.append(next(iter(shown.values())))
                advance(1, ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
                why = agreed(training.stop() or self._stalled(losses), training.student.parameters[0].device)
                if why:
                    return f"stopped after {len(losses)} iterations: {why}"
                if saved is not None:
                    saved.save(training, generator, losses)
        return f"{iterations} iterations"

    def _stalled(self, losses: Sequence[float]) -> str:
        count = self.patience
        if not count or len(losses) < 2 * count:
            return ""
        last, before = sum(losses[-count:]), sum(losses[-2 * count : -count])
        return f"the loss fell by less than 1 % in {count}" if last >= before * _BETTER else ""


def discard_checkpoint(path: str | Path) -> None:
    """Remove the checkpoint of this process, once the patch of the training is safe."""
    own_file(path).unlink(missing_ok=True)


class _Checkpoint:
    """A file with all that a training goes on from."""

    def __init__(self, file: CheckpointFile) -> None:
        self._file = file

    def save(self, training: Training, generator: torch.Generator, losses: Sequence[float]) -> None:
        """Write everything that changes, unless that was done not long ago; all processes do it at the same step."""

        def state() -> dict[str, torch.Tensor]:
            facts = {"generator": generator.get_state(), "losses": torch.tensor(losses, dtype=torch.float64)}
            return _state(training) | facts

        device = training.student.parameters[0].device
        self._file.save(state, lambda due: anywhere(due, device))

    def load(self, training: Training, generator: torch.Generator) -> list[float]:
        """Set everything to what the file says; the losses so far, none without a file.

        Raises:
            ValueError: A damaged file, one of another training, or those of several processes are of different steps.
        """
        try:
            losses, wrong = self._load(training, generator), None
        except ValueError as error:
            losses, wrong = [], error
        device = training.student.parameters[0].device
        steps = everywhere(-1 if wrong else len(losses), device)
        if wrong is not None:
            raise wrong
        if len(set(steps)) > 1:
            said = ", ".join("none that can be read" if step < 0 else str(step) for step in steps)
            raise ValueError(
                f"expected checkpoints of one step for all processes, got {said}, in the order of processes; delete "
                f"{self._file.path} and its like"
            )
        return losses

    def _load(self, training: Training, generator: torch.Generator) -> list[float]:
        with self._file.read("another model, concept, method, option or seed") as tensors:
            if not tensors:
                return []
            generator.set_state(tensors["generator"])
            _restore(training, tensors)
            return [float(value) for value in tensors["losses"]]


def _in_place(training: Training) -> dict[str, torch.Tensor]:
    """What changes in place, by name."""
    tensors = {f"student/{name}": value for name, value in training.student.tensors().items()}
    tensors |= {f"tensors/{name}": value for name, value in training.tensors.items()}
    return tensors | {"scale": training.student.scale.state}


def _state(training: Training) -> dict[str, torch.Tensor]:
    """All that changes in training, by name."""
    tensors = _in_place(training)
    for name, optimizer in training.optimizers.items():
        tensors |= optimizer_tensors(optimizer, f"optimizers/{name}")
    return tensors


@torch.no_grad()
def _restore(training: Training, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, value in _in_place(training).items():
        value.copy_(tensors[name])
    for name, optimizer in training.optimizers.items():
        restore_optimizer(optimizer, tensors, f"optimizers/{name}")


@contextmanager
def without_dropout(pipe: Any) -> Iterator[None]:
    """Inside, the modules compute as when pictures are drawn."""
    modules = [
        component
        for component in pipe.components.values()
        if isinstance(component, torch.nn.Module) and component.training
    ]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module in modules:
            module.train()


@contextmanager
def _memory(pipe: Any, checkpointing: bool) -> Iterator[None]:
    """Inside, activations of the denoisers are computed again when gradients need them."""
    with ExitStack() as stack:
        for denoiser in denoisers_of(pipe).values():
            if checkpointing and not getattr(denoiser, "is_gradient_checkpointing", False):
                stack.enter_context(checkpointed(denoiser))
        yield


@torch.no_grad()
def seconds_a_pass(pipe: Any, passes: int = 3) -> float:
    """How long the denoiser takes for one latent, after a pass that does not count."""
    condition, latents = conditions(pipe, [""]), torch.zeros(1, *latent_shape(pipe), device=denoiser_of(pipe).device)
    times = torch.zeros(1, dtype=torch.long)
    with mixed(pipe):
        float(predict(pipe, latents, times, condition).sum())
        started = time.perf_counter()
        for _ in range(passes):
            float(predict(pipe, latents, times, condition).sum())
    return (time.perf_counter() - started) / passes


def _known_before(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what was left at the default of a field that older checkpoints do not know."""
    return {name: value for name, value in config.items() if name not in _LATER or value != _LATER[name]}


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
