"""`erase sae import`: autoencoders of others."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from erasers.cli.console import err, out
from erasers.cli.groups import with_groups
from erasers.cli.model import Hardware, ModelOptions
from erasers.cli.options import DEFAULT_MODEL, Model, Overwrite
from erasers.cli.sae.blocks import TEXT_ENCODER, Block, Component, find_block, read_prompts
from erasers.cli.targets import check_out_file, check_targets, written_or_kept
from erasers.sae.presets import DENOISERS


@with_groups
def import_(
    *,
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
    hardware: Hardware,
) -> None:
    """Bring an autoencoder of another's code into the form that itd takes, for a block of a model.

    Known are the files of ItD, Concept Steerers, SAeUron, sparsify, SAELens and dictionary_learning.
    """
    hardware.check()
    check_out_file(out_file)
    check_targets({"--out": out_file}, {"FILE": file, "--prompts": prompts, "--model": model}, overwrite=overwrite)
    with err.status("reading"):
        from erasers.sae.autoencoder import quality, save_sae
        from erasers.sae.published import import_sae

        if not file.is_file():
            raise FileNotFoundError(f"expected an autoencoder, got {file}, which is no file")
        texts = read_prompts(prompts) if prompts else []
        if texts and component in DENOISERS:
            raise ValueError(f"expected --prompts for a text encoder, got them for {component}, which reads pictures")
        where = find_block(ModelOptions(model).load(hardware), component or TEXT_ENCODER, block)
        imported = import_sae(file, width=where.width, k=k, activation=activation)
        about = {"imported": imported.code, "file": file.name}
        save = partial(save_sae, sae=imported.sae, target=where.target, base=where.fingerprints(), about=about)
        written_or_kept(save, out_file, overwrite=overwrite)
        measured = quality(imported.sae, [where.counted(where.outputs(texts)).flatten(0, 1)]) if texts else None
    out.print(
        f"autoencoder  {escape(str(out_file))}  ({out_file.stat().st_size} bytes) of {where.target}: {imported.sae.n} "
        f"features, {imported.sae.k} active, {imported.sae.activation}, as {imported.code} names them"
    )
    if measured:
        shares = f"explained variance {measured.explained_variance:.4f}, {measured.l0:.1f} features a row"
        out.print(f"measured     {shares}, on {measured.rows} rows; far below 1 it is of another block or model")
