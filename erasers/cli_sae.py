"""`erase sae train` and `erase explain`: sparse autoencoders of text encoders, and what their features say."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from erasers import cli_input
from erasers.cli_options import DEFAULT_MODEL, Device, Dtype, Model
from erasers.cli_output import err, out, plain

if TYPE_CHECKING:
    from erasers.methods.explaining import Explanation
    from erasers.methods.sae_training import SAETraining, Trained
    from erasers.methods.text_blocks import Block

sae = typer.Typer(
    rich_markup_mode="rich", no_args_is_help=True, help="Sparse autoencoders of text encoders, which itd needs."
)
_SHAPES = {"features": 1024, "k": 16, "steps": 500, "lr": 3e-3, "prompts": 64, "warmup": 50, "dead_after": 20_000}
_SHAPES_PROMPTS = 8000


@sae.callback()
def _group() -> None:
    """A group, though it has one command so far."""


@sae.command()
def train(
    out_file: Annotated[Path, typer.Option("--out", help="The autoencoder; its folder must exist.")],
    model: Model = DEFAULT_MODEL,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file of prompts, one a line. [dim]captions, for the embedded model[/dim]")
    ] = None,
    component: Annotated[str, typer.Option(help="text_encoder, or text_encoder_2 of SDXL.")] = "text_encoder",
    block: Annotated[
        int | None, typer.Option(min=0, help="Block whose output is described. [dim]three quarters of the way up[/dim]")
    ] = None,
    features: Annotated[int | None, typer.Option(min=1, help="Features. [dim]4096; embedded model 1024[/dim]")] = None,
    k: Annotated[int | None, typer.Option(min=1, help="Active features a token. [dim]32; 16[/dim]")] = None,
    activation: Annotated[str, typer.Option(help="batchtopk or topk.")] = "batchtopk",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of training. [dim]4000; 500[/dim]")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Prompts a step. [dim]50; 64[/dim]")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. [dim]0.001; 0.003[/dim]")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first directions and of the order of prompts.")] = 0,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File that the training goes on from when it was stopped.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Train a sparse autoencoder on what a text encoder makes of prompts; writes curves beside it (.json, .png)."""
    cli_input.check_device(device)
    cli_input.check_dtype(dtype)
    cli_input.check_out_file(out_file)
    with err.status("reading"):
        from erasers.evaluation.profile import is_shapes
        from erasers.methods.sae_training import SAETraining, shapes_prompts
        from erasers.methods.text_blocks import find_blocks

        shapes = is_shapes(model)
        given: dict[str, Any] = {"features": features, "k": k, "steps": steps, "prompts": batch, "lr": lr}
        given |= {"activation": activation, "seed": seed}
        defaults: dict[str, Any] = _SHAPES if shapes else {}
        training = SAETraining(**{**defaults, **{key: value for key, value in given.items() if value is not None}})
        if prompts is None and not shapes:
            raise ValueError("no --prompts; name a text file of captions, one a line, for a model of your own")
        texts = shapes_prompts(_SHAPES_PROMPTS) if prompts is None else read_prompts(prompts)
        pipe = cli_input.load_model(model, device, dtype)
        blocks = {one.name: one for one in find_blocks(pipe, block)}
        if component not in blocks:
            raise ValueError(f"expected --component among {', '.join(blocks)}, got {component!r}")
    started = time.perf_counter()
    trained = _train(blocks[component], texts, training, checkpoint)
    facts = {"model": model, "prompts": len(texts), "training": asdict(training), "quality": asdict(trained.quality)}
    facts["seconds"] = round(time.perf_counter() - started, 1)
    _write(out_file, blocks[component], trained, facts)
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    found = trained.quality
    out.print(f"autoencoder  {escape(str(out_file))}  ({out_file.stat().st_size} bytes) of {blocks[component].target}")
    out.print(
        f"measured     explained variance {found.explained_variance:.4f}, {found.l0:.1f} features a token, "
        f"{found.dead:.1%} dead, on {found.rows} tokens that it was not trained on"
    )
    out.print(f"curves       {escape(str(out_file.with_suffix('.json')))}, {escape(str(out_file.with_suffix('.png')))}")


def explain(
    concept: Annotated[str, typer.Option(metavar="TEXT", help="The concept whose features are shown.")],
    model: Model = DEFAULT_MODEL,
    sae_file: Annotated[
        list[Path] | None, typer.Option("--sae", help="Autoencoder files. [dim]that of the embedded model[/dim]")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of itd. Repeatable.")
    ] = None,
    features: Annotated[int, typer.Option(min=1, help="Rows of the table.")] = 12,
    picture: Annotated[Path | None, typer.Option("--out", help="PNG with a heat map of features and prompts.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Show which features of a sparse autoencoder fire for a concept, and in which prompts."""
    cli_input.check_device(device)
    cli_input.check_dtype(dtype)
    if picture:
        cli_input.check_out_file(picture)
    with err.status("reading"):
        from erasers.eraser import get_eraser, parse_options
        from erasers.evaluation.profile import is_shapes
        from erasers.methods.explaining import draw_explanation, explanations

        (found,) = cli_input.build_concepts([concept], shapes=is_shapes(model))
        options: dict[str, Any] = parse_options("itd", setting or [])
        if sae_file:
            options["sae"] = tuple(str(path) for path in sae_file)
        eraser = get_eraser("itd", **options)
        pipe = cli_input.load_model(model, device, dtype)
        shown = explanations(pipe, found, eraser)  # type: ignore[arg-type]
    for one in shown:
        _show(one, features)
    if picture:
        draw_explanation(shown[0], picture, features)
        out.print(f"picture   {escape(str(picture))}")


def read_prompts(path: Path) -> list[str]:
    """Distinct lines of a text file.

    Raises:
        ValueError: No such file, or no prompts in it.
    """
    if not path.is_file():
        raise ValueError(f"expected a text file as --prompts, got {path}, which is no file")
    texts = list(dict.fromkeys(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()))
    if not texts:
        raise ValueError(f"expected prompts in {path}, one a line, got none")
    return texts


def _train(block: Block, texts: Sequence[str], training: SAETraining, checkpoint: Path | None) -> Trained:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from erasers.methods.sae_training import train_sae

    columns = [
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    ]
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=training.steps)
        return train_sae(
            block,
            texts,
            training,
            checkpoint=checkpoint,
            tell=lambda count, text: bar.update(task, advance=count, description=text),
        )


def _write(path: Path, block: Block, trained: Trained, facts: dict[str, Any]) -> None:
    from erasers.methods.sae_training import draw_curves
    from erasers.sae import save_sae

    about = {key: facts[key] for key in ("model", "prompts", "training", "quality")}
    save_sae(path, trained.sae, target=block.target, base=block.fingerprints(), about=about)
    curves = {name: [round(value, 5) for value in values] for name, values in trained.curves.items()}
    path.with_suffix(".json").write_text(json.dumps({**facts, "curves": curves}) + "\n", encoding="utf-8")
    draw_curves(trained.curves, path.with_suffix(".png"))


def _show(found: Explanation, features: int) -> None:
    from rich.table import Table

    out.print(
        f"[bold]{plain(found.concept)}[/bold]  {len(found.features)} features of {found.target} fire for it alone; "
        f"one of them passes the gate in {found.caught:.0%} of its prompts, and in {found.passed:.1%} of kept ones"
    )
    table = Table("feature", "fires on", "in prompts with it", "strongest prompt", "gate", "at most")
    for one in found.features[:features]:
        table.add_row(
            str(one.number),
            plain(" ".join(one.tokens)),
            f"{one.share:.0%}",
            plain(one.prompt),
            f"{one.gate:.2f}",
            f"{one.strongest:.2f}",
        )
    out.print(table, soft_wrap=False)
    if len(found.features) > features:
        out.print(f"... {len(found.features)} in all (--features)")
