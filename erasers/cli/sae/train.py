"""`erase sae train`: an autoencoder for a block of a text encoder or of a denoiser."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from erasers.cli.console import err, out
from erasers.cli.groups import refuse_idle, with_groups
from erasers.cli.model import Hardware, ModelOptions
from erasers.cli.options import GUIDANCE, SEED, STEPS, Overwrite, finite
from erasers.cli.sae.blocks import TEXT_ENCODER, Block, Component, find_block, read_prompts
from erasers.cli.targets import beside, check_out_file, check_targets, written_or_kept
from erasers.progress import progress
from erasers.sae.presets import DENOISERS

if TYPE_CHECKING:
    from erasers.diffusion.latent_bank import Way
    from erasers.sae.rows import Rows
    from erasers.sae.training import SAETraining, Trained
    from erasers.worlds import World

_TEXT = {"features": 1024, "k": 16, "steps": 500, "lr": 3e-3, "prompts": 64, "warmup": 50, "dead_after": 20_000}
_DENOISER = {"features": 20_480, "prompts": 8, "lr": 4e-4}
_EMBEDDED_DENOISER = {"features": 1024, "k": 16, "steps": 1000, "lr": 3e-3, "prompts": 16, "warmup": 50}
_WAY = (50, 9.0)
_CAPTIONS = 8000
"""Prompts that an embedded model is described with."""


@dataclass(frozen=True)
class Asked:
    """What is trained, on what, and how."""

    prompts: Annotated[
        Path | None, typer.Option(help="Text file of prompts, one a line. [dim]captions, for the embedded model[/dim]")
    ] = None
    preset: Annotated[
        str | None,
        typer.Option(
            help="A published setting: itd, itd-nudity, steerers, saeuron-object, saeuron-style; other options win."
        ),
    ] = None
    component: Component = None
    block: Block = None
    features: Annotated[
        int | None,
        typer.Option(min=1, max=1 << 24, help="Features. [dim]4096; of a denoiser 20480; embedded model 1024[/dim]"),
    ] = None
    k: Annotated[
        int | None, typer.Option(min=1, max=1 << 20, help="Active features a token or place. [dim]32; 16[/dim]")
    ] = None
    activation: Annotated[str | None, typer.Option(help="topk or batchtopk. [dim]batchtopk[/dim]")] = None
    steps: Annotated[int | None, typer.Option(min=1, max=10**9, help="Steps of training. [dim]4000; 500[/dim]")] = None
    batch: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="Prompts a step, or pictures drawn together. [dim]50; 8; 64; 16[/dim]"),
    ] = None
    lr: Annotated[
        float | None,
        typer.Option(min=0, max=1000, callback=finite, help="Learning rate. [dim]0.001; 0.0004; 0.003[/dim]"),
    ] = None
    sampling_steps: Annotated[
        int | None,
        typer.Option(min=1, max=STEPS, help="Of the pictures that a denoiser is read from. [dim]50; 20[/dim]"),
    ] = None
    guidance: Annotated[
        float | None,
        typer.Option(
            min=-GUIDANCE,
            max=GUIDANCE,
            callback=finite,
            help="With which these are drawn. [dim]9; 4; a transformer's own[/dim]",
        ),
    ] = None
    dead_after: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, help="Rows without activity after which a feature is dead. [dim]100000[/dim]"),
    ] = None
    seed: Annotated[int, typer.Option(min=0, max=SEED, help="Of the first directions and of the order of prompts.")] = 0
    padding: Annotated[
        bool | None,
        typer.Option(
            "--padding/--no-padding",
            help="Train on what lies behind the end of a prompt, too. [dim]not, but for the embedded model[/dim]",
        ),
    ] = None

    def with_preset(self) -> Asked:
        """With the component, and the block of a preset where it is that of the preset's own component."""
        if not self.preset:
            return replace(self, component=self.component or TEXT_ENCODER)
        from erasers.sae.presets import find_preset

        published = find_preset(self.preset)
        own = published.block if self.component in (None, published.component) else None
        return replace(self, component=self.component or published.component, block=self.block or own)

    def check(self, context: typer.Context) -> None:
        """Refuse options for another component.

        Raises:
            ValueError: One was given.
        """
        if self.component in DENOISERS:
            refuse_idle(context, ["--padding"], "for a text encoder; take one as --component")
        else:
            idle = ["--sampling-steps", "--guidance"]
            refuse_idle(context, idle, "for pictures that a denoiser is read from; add --component unet or transformer")

    def training(self, world: World | None) -> SAETraining:
        """Sizes and rates: what is given, over those of the preset, or that suit the model."""
        from erasers.sae.presets import find_preset
        from erasers.sae.training import SAETraining

        drawn = self.component in DENOISERS
        defaults: dict[str, Any] = (_EMBEDDED_DENOISER if drawn else _TEXT) if world else _DENOISER if drawn else {}
        defaults = dict(find_preset(self.preset).options) if self.preset else defaults
        given = {
            "features": self.features,
            "k": self.k,
            "steps": self.steps,
            "prompts": self.batch,
            "lr": self.lr,
            "activation": self.activation,
            "dead_after": self.dead_after,
            "seed": self.seed,
        }
        return SAETraining(**{**defaults, **{key: value for key, value in given.items() if value is not None}})

    def texts(self, world: World | None) -> list[str]:
        """The prompts of the file, or captions of an embedded world.

        Raises:
            ValueError: No file, for a model of no world, or of one without captions.
        """
        if self.prompts is not None:
            return read_prompts(self.prompts)
        if world is None:
            raise ValueError("no --prompts; name a text file of captions, one a line, for a model of your own")
        return world.captions(_CAPTIONS)

    def way(self, pipe: Any, world: World | None) -> Way:
        """How the pictures are drawn that a denoiser is read from."""
        from erasers.diffusion.latent_bank import Way
        from erasers.models.calls import default_of

        steps, guidance = (world.steps, world.guidance) if world else _WAY
        own = None if world or self.component == "unet" else default_of(pipe, "guidance_scale")
        guidance = guidance if own is None else float(own)
        return Way(self.sampling_steps or steps, guidance if self.guidance is None else self.guidance)


@with_groups
def train(
    *,
    context: typer.Context,
    out_file: Annotated[Path, typer.Option("--out", help="The autoencoder; its folder must exist.")],
    base: ModelOptions,
    asked: Asked,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File that the training goes on from when it was stopped.")
    ] = None,
    overwrite: Overwrite = False,
    hardware: Hardware,
) -> None:
    """Train a sparse autoencoder on what a text encoder makes of prompts; writes curves beside it (.json, .png).

    With --component unet or transformer, on what a block of the denoiser makes of pictures while they are drawn.
    """
    hardware.check()
    asked = asked.with_preset()
    asked.check(context)
    check_out_file(out_file)
    outputs = {"--out": out_file, "--checkpoint": checkpoint, **beside(out_file, (".json", ".png"))}
    check_targets(outputs, {"--prompts": asked.prompts, "--model": base.model}, overwrite=overwrite)
    with err.status("reading"):
        from erasers import worlds
        from erasers.models.calls import tokens_a_prompt

        world = worlds.find(base.model)
        training, texts = asked.training(world), asked.texts(world)
        rows = _rows(base.load(hardware), asked, texts, training, world)
    started = time.perf_counter()
    with tokens_a_prompt(rows.block.pipe, world.tokens if world else None):
        trained = _train(rows, training, checkpoint)
    facts = {
        "model": base.model,
        "prompts": len(texts),
        "training": asdict(training),
        "quality": asdict(trained.quality),
        "seconds": round(time.perf_counter() - started, 1),
    }
    _write(out_file, rows, trained, facts, overwrite=overwrite)
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    _show(out_file, rows, trained)


def _rows(pipe: Any, asked: Asked, texts: Sequence[str], training: SAETraining, world: World | None) -> Rows:
    """What is trained on.

    Raises:
        ValueError: A component or a block that the model has not.
    """
    from erasers.sae.denoiser_block import DenoiserBlock
    from erasers.sae.rows import DenoiserRows, TextRows

    usual = world.denoiser_block if world and asked.component in DENOISERS else None
    block = find_block(pipe, asked.component or TEXT_ENCODER, asked.block or usual)
    if isinstance(block, DenoiserBlock):
        return DenoiserRows(block, texts, training.prompts, training.seed, asked.way(pipe, world))
    padding = world is not None if asked.padding is None else asked.padding
    return TextRows(block, texts, training.prompts, training.seed, padding)


def _train(rows: Rows, training: SAETraining, checkpoint: Path | None) -> Trained:
    from erasers.sae.training import train_sae

    with progress(err, "training", training.steps) as advance:
        return train_sae(rows, training, checkpoint=checkpoint, tell=advance)


def _write(path: Path, rows: Rows, trained: Trained, facts: dict[str, Any], *, overwrite: bool) -> None:
    from erasers.sae.autoencoder import save_sae
    from erasers.sae.training import draw_curves

    about = {key: facts[key] for key in ("model", "prompts", "training", "quality")} | rows.about()
    save = partial(save_sae, sae=trained.sae, target=rows.target, base=rows.fingerprints(), about=about)
    written_or_kept(save, path, overwrite=overwrite)
    curves = {name: [round(value, 5) for value in values] for name, values in trained.curves.items()}
    text = json.dumps({**facts, "curves": curves}) + "\n"
    write = partial(Path.write_text, data=text, encoding="utf-8")
    written_or_kept(write, path.with_suffix(".json"), overwrite=overwrite)
    written_or_kept(partial(draw_curves, trained.curves), path.with_suffix(".png"), overwrite=overwrite)


def _show(path: Path, rows: Rows, trained: Trained) -> None:
    quality = trained.quality
    out.print(f"autoencoder  {escape(str(path))}  ({path.stat().st_size} bytes) of {rows.target}")
    out.print(
        f"measured     explained variance {quality.explained_variance:.4f}, {quality.l0:.1f} features a row, "
        f"{quality.dead:.1%} dead, on {quality.rows} rows that it was not trained on"
    )
    out.print(f"curves       {escape(str(path.with_suffix('.json')))}, {escape(str(path.with_suffix('.png')))}")
