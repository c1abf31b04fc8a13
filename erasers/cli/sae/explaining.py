"""`erase explain`: which features of an autoencoder fire for a concept."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from erasers.cli.concepts import build_concepts
from erasers.cli.console import err, out, plain
from erasers.cli.groups import refuse_idle, with_groups
from erasers.cli.model import Hardware, ModelOptions
from erasers.cli.options import Overwrite
from erasers.cli.pictures import in_format, picture_format
from erasers.cli.targets import check_out_file, check_targets, written_or_kept

if TYPE_CHECKING:
    from erasers.methods.itd.explaining import Explanation


@with_groups
def explain(
    *,
    context: typer.Context,
    concept: Annotated[str, typer.Option(metavar="TEXT", help="The concept whose features are shown.")],
    base: ModelOptions,
    sae_file: Annotated[
        list[Path] | None, typer.Option("--sae", help="Autoencoder files. [dim]that of the embedded model[/dim]")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the method. Repeatable.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="itd; or concept_lancet, which shows of what directions prompts consist.")
    ] = "itd",
    features: Annotated[int, typer.Option(min=1, max=10_000, help="Rows of the table.")] = 12,
    picture: Annotated[
        Path | None, typer.Option("--out", help="Heat map of features and prompts: .png, .jpg, .webp or .bmp.")
    ] = None,
    overwrite: Overwrite = False,
    hardware: Hardware,
) -> None:
    """Show which features of a sparse autoencoder fire for a concept, and in which prompts."""
    hardware.check()
    if method == "concept_lancet":
        if sae_file or picture:
            raise ValueError("--sae and --out are for itd; leave them out with --method concept_lancet")
        _decompose(concept, base, setting or [], features, hardware)
        return
    if method != "itd":
        raise ValueError(f"expected --method itd or concept_lancet, got {method!r:.80}")
    if not picture:
        refuse_idle(context, ["--overwrite"], "for a picture; add --out FILE")
    if sae_file and any(text.partition("=")[0].strip() == "sae" for text in setting or []):
        raise ValueError("--sae and --set sae=... say the same; leave one of them out")
    if picture:
        check_out_file(picture)
        check_targets({"--out": picture}, {"--sae": sae_file, "--model": base.model}, overwrite=overwrite)
        picture_format(picture)
    with err.status("reading"):
        from erasers import worlds
        from erasers.eraser import get_eraser, parse_options
        from erasers.methods.itd.explaining import draw_explanation, explanations

        (erased,) = build_concepts([concept], world=worlds.find(base.model))
        options: dict[str, Any] = parse_options("itd", setting or [])
        if sae_file:
            options["sae"] = tuple(str(path) for path in sae_file)
        eraser = get_eraser("itd", **options)
        shown = explanations(base.load(hardware), erased, eraser)  # type: ignore[arg-type]
    for explanation in shown:
        _show(explanation, features)
    if picture:
        draw = partial(draw_explanation, shown[0], features=features)
        written_or_kept(in_format(draw, picture_format(picture)), picture, overwrite=overwrite)
        out.print(f"picture   {escape(str(picture))}")


def _decompose(name: str, base: ModelOptions, settings: list[str], count: int, hardware: Hardware) -> None:
    with err.status("reading"):
        from erasers import worlds
        from erasers.eraser import get_eraser, parse_options
        from erasers.methods.concept_lancet.explaining import decompositions

        (erased,) = build_concepts([name], world=worlds.find(base.model))
        eraser = get_eraser("concept_lancet", **parse_options("concept_lancet", settings))
        shown = decompositions(base.load(hardware), erased, eraser)  # type: ignore[arg-type]
    table = Table("prompt", "read by", plain(name), "gate", "strongest other directions")
    for row in shown:
        others = ", ".join(f"{other} {value:.2f}" for other, value in row.others[: min(count, 3)])
        table.add_row(plain(row.prompt) or '""', row.text, f"{row.own:.2f}", f"{row.gate:.2f}", plain(others))
    out.print(table, soft_wrap=False)


def _show(explanation: Explanation, count: int) -> None:
    fire = f"{len(explanation.features)} features of {explanation.target} fire for it alone"
    caught, passed = f"{explanation.caught:.0%} of its prompts", f"{explanation.passed:.1%} of kept ones"
    out.print(
        f"[bold]{plain(explanation.concept)}[/bold]  {fire}; one of them passes the gate in {caught}, and in {passed}"
    )
    table = Table("feature", "fires on", "in prompts with it", "strongest prompt", "gate", "at most")
    for feature in explanation.features[:count]:
        table.add_row(
            str(feature.number),
            plain(" ".join(feature.tokens)),
            f"{feature.share:.0%}",
            plain(feature.prompt),
            f"{feature.gate:.2f}",
            f"{feature.strongest:.2f}",
        )
    out.print(table, soft_wrap=False)
    if len(explanation.features) > count:
        out.print(f"... {len(explanation.features)} in all (--features)")
