"""`erase sae train`, `erase sae import` and `erase explain`: sparse autoencoders, and what their features say."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from erasers.cli import input as cli_input
from erasers.cli.options import (
    DEFAULT_MODEL,
    GUIDANCE,
    SEED,
    STEPS,
    Config,
    Device,
    Dtype,
    Model,
    Overwrite,
    Revision,
    Variant,
    finite,
    model_options,
)
from erasers.cli.output import err, out, plain
from erasers.cli.places import beside, check_places
from erasers.files.atomic import write_atomically

if TYPE_CHECKING:
    from erasers.diffusion.latent_bank import Way
    from erasers.methods.itd.explaining import Explanation
    from erasers.sae.rows import Rows
    from erasers.sae.training import SAETraining, Trained
    from erasers.worlds import World

sae = typer.Typer(
    rich_markup_mode="rich",
    no_args_is_help=True,
    help="Sparse autoencoders, which itd needs.",
)
_TEXT = {"features": 1024, "k": 16, "steps": 500, "lr": 3e-3, "prompts": 64, "warmup": 50, "dead_after": 20_000}
_DENOISER = {"features": 20_480, "prompts": 8, "lr": 4e-4}
_EMBEDDED_DENOISER = {"features": 1024, "k": 16, "steps": 1000, "lr": 3e-3, "prompts": 16, "warmup": 50}
_WAY = (50, 9.0)
_CAPTIONS = 8000
"""Prompts that an embedded model is described with."""


Component = Annotated[
    str | None, typer.Option(help="text_encoder, text_encoder_2 of SDXL, or unet. [dim]text_encoder[/dim]")
]
Block = Annotated[
    str | None,
    typer.Option(
        help="Block that is described: its number in a text encoder [dim]three quarters of the way up[/dim], "
        "its path in a UNet [dim]up_blocks.1.attentions.1[/dim]."
    ),
]
_TEXT_ENCODER = "text_encoder"


@sae.command()
def train(
    out_file: Annotated[Path, typer.Option("--out", help="The autoencoder; its folder must exist.")],
    model: Model = DEFAULT_MODEL,
    variant: Variant = None,
    revision: Revision = None,
    config: Config = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file of prompts, one a line. [dim]captions, for the embedded model[/dim]")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="A published setting: itd, itd-nudity, steerers, saeuron-object, saeuron-style; other options win."
        ),
    ] = None,
    component: Component = None,
    block: Block = None,
    features: Annotated[
        int | None,
        typer.Option(min=1, max=1 << 24, help="Features. [dim]4096; of a UNet 20480; embedded model 1024[/dim]"),
    ] = None,
    k: Annotated[
        int | None, typer.Option(min=1, max=1 << 20, help="Active features a token or place. [dim]32; 16[/dim]")
    ] = None,
    activation: Annotated[str | None, typer.Option(help="topk or batchtopk. [dim]batchtopk[/dim]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=10**9, help="Steps of training. [dim]4000; 500[/dim]")] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="Prompts a step, or pictures drawn together. [dim]50; 8; 64; 16[/dim]"),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(min=0, max=1000, callback=finite, help="Learning rate. [dim]0.001; 0.0004; 0.003[/dim]"),
    ] = None,
    sampling_steps: Annotated[
        int | None, typer.Option(min=1, max=STEPS, help="Of the pictures that a UNet is read from. [dim]50; 20[/dim]")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(min=-GUIDANCE, max=GUIDANCE, callback=finite, help="With which these are drawn. [dim]9; 4[/dim]"),
    ] = None,
    dead_after: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, help="Rows without activity after which a feature is dead. [dim]100000[/dim]"),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=SEED, help="Of the first directions and of the order of prompts.")
    ] = 0,
    padding: Annotated[
        bool | None,
        typer.Option(
            "--padding/--no-padding",
            help="Train on what lies behind the end of a prompt, too. [dim]not, but for the embedded model[/dim]",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File that the training goes on from when it was stopped.")
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Train a sparse autoencoder on what a text encoder makes of prompts; writes curves beside it (.json, .png).

    With --component unet, on what a block of the UNet makes of pictures while they are drawn.
    """
    cli_input.check_device(device)
    cli_input.check_dtype(dtype)
    cli_input.check_out_file(out_file)
    outputs = {"--out": out_file, "--checkpoint": checkpoint, **beside(out_file, (".json", ".png"))}
    check_places(outputs, {"--prompts": prompts, "--model": model}, overwrite=overwrite)
    with err.status("reading"):
        from erasers import worlds
        from erasers.diffusion.latent_bank import Way
        from erasers.sae.presets import find_preset
        from erasers.sae.training import SAETraining

        published = find_preset(preset) if preset else None
        if published:
            # A block of the preset's own component alone.
            same = component in (None, published.component)
            component, block = component or published.component, block or (published.block if same else None)
        component = component or _TEXT_ENCODER
        world, unet = worlds.find(model), component == "unet"
        given: dict[str, Any] = {"features": features, "k": k, "steps": steps, "prompts": batch, "lr": lr}
        given |= {"activation": activation, "dead_after": dead_after, "seed": seed}
        defaults: dict[str, Any] = (_EMBEDDED_DENOISER if unet else _TEXT) if world else _DENOISER if unet else {}
        defaults = dict(published.options) if published else defaults
        training = SAETraining(**{**defaults, **{key: value for key, value in given.items() if value is not None}})
        texts = read_prompts(prompts) if prompts else _captions(world)
        usual = Way(*((world.steps, world.guidance) if world else _WAY))
        way = Way(sampling_steps or usual.steps, usual.guidance if guidance is None else guidance)
        path = block or (world.denoiser_block if world and unet else None)
        padded = world is not None if padding is None else padding
        pipe = cli_input.load_model(model, device, dtype, **model_options(variant, revision, config))
        rows = _rows(pipe, component, path, texts, training, way, padded)
    started = time.perf_counter()
    trained = _train(rows, training, checkpoint)
    facts = {"model": model, "prompts": len(texts), "training": asdict(training), "quality": asdict(trained.quality)}
    facts["seconds"] = round(time.perf_counter() - started, 1)
    _write(out_file, rows, trained, facts)
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    found = trained.quality
    out.print(f"autoencoder  {escape(str(out_file))}  ({out_file.stat().st_size} bytes) of {rows.target}")
    out.print(
        f"measured     explained variance {found.explained_variance:.4f}, {found.l0:.1f} features a row, "
        f"{found.dead:.1%} dead, on {found.rows} rows that it was not trained on"
    )
    out.print(f"curves       {escape(str(out_file.with_suffix('.json')))}, {escape(str(out_file.with_suffix('.png')))}")


@sae.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A safetensors file; cfg.json beside it is read, too.")],
    out_file: Annotated[Path, typer.Option("--out", help="The autoencoder; its folder must exist.")],
    model: Model = DEFAULT_MODEL,
    component: Component = None,
    block: Block = None,
    k: Annotated[
        int | None, typer.Option(min=1, max=1 << 20, help="Active features a token or place, if no file says it.")
    ] = None,
    activation: Annotated[
        str | None, typer.Option(help="topk or batchtopk. [dim]batchtopk where the file has a threshold[/dim]")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file of prompts to measure it on, one a line; for a text encoder.")
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Bring an autoencoder of another's code into the form that itd takes, for a block of a model.

    Known are the files of ItD, Concept Steerers, SAeUron, sparsify, SAELens and dictionary_learning.
    """
    cli_input.check_device(device)
    cli_input.check_dtype(dtype)
    cli_input.check_out_file(out_file)
    check_places({"--out": out_file}, {"FILE": file, "--prompts": prompts, "--model": model}, overwrite=overwrite)
    with err.status("reading"):
        from erasers.sae.autoencoder import quality, save_sae
        from erasers.sae.published import import_sae

        if not file.is_file():
            raise FileNotFoundError(f"expected an autoencoder, got {file}, which is no file")
        texts = read_prompts(prompts) if prompts else []
        if texts and component == "unet":
            raise ValueError("expected --prompts for a text encoder, got them for unet, which reads pictures")
        where = _find_block(cli_input.load_model(model, device, dtype), component or _TEXT_ENCODER, block)
        found = import_sae(file, width=where.width, k=k, activation=activation)
        about = {"imported": found.code, "file": file.name}
        save_sae(out_file, found.sae, target=where.target, base=where.fingerprints(), about=about)
        measured = quality(found.sae, [where.outputs(texts)[:, 1:].flatten(0, 1)]) if texts else None
    out.print(
        f"autoencoder  {escape(str(out_file))}  ({out_file.stat().st_size} bytes) of {where.target}: {found.sae.n} "
        f"features, {found.sae.k} active, {found.sae.activation}, as {found.code} names them"
    )
    if measured:
        shares = f"explained variance {measured.explained_variance:.4f}, {measured.l0:.1f} features a row"
        out.print(f"measured     {shares}, on {measured.rows} rows; far below 1 it is of another block or model")


def explain(
    concept: Annotated[str, typer.Option(metavar="TEXT", help="The concept whose features are shown.")],
    model: Model = DEFAULT_MODEL,
    variant: Variant = None,
    revision: Revision = None,
    config: Config = None,
    sae_file: Annotated[
        list[Path] | None, typer.Option("--sae", help="Autoencoder files. [dim]that of the embedded model[/dim]")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of itd. Repeatable.")
    ] = None,
    features: Annotated[int, typer.Option(min=1, max=10_000, help="Rows of the table.")] = 12,
    picture: Annotated[Path | None, typer.Option("--out", help="PNG with a heat map of features and prompts.")] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Show which features of a sparse autoencoder fire for a concept, and in which prompts."""
    cli_input.check_device(device)
    cli_input.check_dtype(dtype)
    if picture:
        cli_input.check_out_file(picture)
        check_places({"--out": picture}, {"--sae": sae_file, "--model": model}, overwrite=overwrite)
    with err.status("reading"):
        from erasers import worlds
        from erasers.eraser import get_eraser, parse_options
        from erasers.methods.itd.explaining import draw_explanation, explanations

        (found,) = cli_input.build_concepts([concept], world=worlds.find(model))
        options: dict[str, Any] = parse_options("itd", setting or [])
        if sae_file:
            options["sae"] = tuple(str(path) for path in sae_file)
        eraser = get_eraser("itd", **options)
        pipe = cli_input.load_model(model, device, dtype, **model_options(variant, revision, config))
        shown = explanations(pipe, found, eraser)  # type: ignore[arg-type]
    for one in shown:
        _show(one, features)
    if picture:
        draw_explanation(shown[0], picture, features)
        out.print(f"picture   {escape(str(picture))}")


def _captions(world: World | None) -> list[str]:
    """The captions of an embedded world.

    Raises:
        ValueError: The model is of no world, or of one without captions.
    """
    if world is None:
        raise ValueError("no --prompts; name a text file of captions, one a line, for a model of your own")
    return world.captions(_CAPTIONS)


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


def _rows(
    pipe: Any,
    component: str,
    block: str | None,
    texts: Sequence[str],
    training: SAETraining,
    way: Way,
    padding: bool,
) -> Rows:
    """What is trained on.

    Raises:
        ValueError: A component or a block that the model has not.
    """
    from erasers.sae.denoiser_block import DenoiserBlock
    from erasers.sae.rows import DenoiserRows, TextRows

    found = _find_block(pipe, component, block)
    if isinstance(found, DenoiserBlock):
        return DenoiserRows(found, texts, training.prompts, training.seed, way)
    return TextRows(found, texts, training.prompts, training.seed, padding)


def _find_block(pipe: Any, component: str, block: str | None) -> Any:
    """The block of a text encoder or of a UNet.

    Raises:
        ValueError: A component or a block that the model has not.
    """
    from erasers.sae.denoiser_block import DenoiserBlock, find_denoiser_block
    from erasers.sae.text_blocks import find_blocks

    if component == DenoiserBlock.name:
        return find_denoiser_block(pipe, block)
    if block is not None and not block.isdecimal():
        raise ValueError(f"expected --block as a number for {component}, got {block!r:.80}")
    blocks = {one.name: one for one in find_blocks(pipe, None if block is None else int(block))}
    if component not in blocks:
        raise ValueError(f"expected --component among {', '.join(blocks)}, {DenoiserBlock.name}, got {component!r:.80}")
    return blocks[component]


def _train(rows: Rows, training: SAETraining, checkpoint: Path | None) -> Trained:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from erasers.sae.training import train_sae

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
            rows,
            training,
            checkpoint=checkpoint,
            tell=lambda count, text: bar.update(task, advance=count, description=text),
        )


def _write(path: Path, rows: Rows, trained: Trained, facts: dict[str, Any]) -> None:
    from erasers.sae.autoencoder import save_sae
    from erasers.sae.training import draw_curves

    about = {key: facts[key] for key in ("model", "prompts", "training", "quality")} | rows.about()
    save_sae(path, trained.sae, target=rows.target, base=rows.fingerprints(), about=about)
    curves = {name: [round(value, 5) for value in values] for name, values in trained.curves.items()}
    text = json.dumps({**facts, "curves": curves}) + "\n"
    write_atomically(path.with_suffix(".json"), lambda part: part.write_text(text, encoding="utf-8"))
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
