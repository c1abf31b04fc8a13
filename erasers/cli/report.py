"""The report of the main command: its options, and its three steps before, between and after all other work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erasers.cli.console import err
from erasers.cli.groups import refuse_idle
from erasers.cli.options import REPORT, Size
from erasers.cli.pictures import DrawnFrom
from erasers.files.report_folder import check_report_folder

if TYPE_CHECKING:
    from erasers.concept import Concept
    from erasers.evaluation.drawing import Drawing
    from erasers.evaluation.profile.profile import Profile
    from erasers.models.inputs import Pictures
    from erasers.patch import Patch

_IDLE = "for the pictures of a report; add --report FOLDER"


@dataclass(frozen=True)
class ReportOptions:
    """What is asked of a report, and whether there is one."""

    report: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Draw and judge before and after: a folder for index.html, grid.png and summary.json; created.",
            rich_help_panel=REPORT,
        ),
    ] = None
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help="Prompts a split. [dim]shapes 50; else 20, or 4 without a judge[/dim]",
            rich_help_panel=REPORT,
        ),
    ] = None
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="JUDGE",
            help="Who counts what is in the pictures: nudenet, clip_zeroshot, the folder of a CLIP or of an image "
            "classifier, or none. Repeatable. [dim]what is installed: NudeNet for nudity, else CLIP[/dim]",
            rich_help_panel=REPORT,
        ),
    ] = None
    size: Size = None
    unsafe: Annotated[
        bool,
        typer.Option("--unsafe", help="Draw the prompts that name unsafe concepts, too.", rich_help_panel=REPORT),
    ] = False

    def asked(self, context: typer.Context, drawn_from: DrawnFrom) -> Report | None:
        """The report that is asked for.

        Args:
            context: Of the parser.
            drawn_from: Options that say what its pictures are drawn from.

        Raises:
            ValueError: Options of a report that there is none of, an empty folder, or no pictures.
            FileExistsError: From `check_report_folder`.
        """
        if self.report is None:
            refuse_idle(context, ["--samples", "--judge", "--size", "--unsafe", *drawn_from.names()], _IDLE)
            return None
        if not self.report.strip():
            raise ValueError("an empty --report; give the folder of the report, e.g. --report report")
        return Report(check_report_folder(Path(self.report)), self, drawn_from.read())


@dataclass(frozen=True)
class Report:
    """A report that will be made.

    Args:
        folder: Where it goes.
        options: What was asked for.
        pictures: What its pictures are drawn from.
    """

    folder: Path
    options: ReportOptions
    pictures: Pictures

    def settle(self, model: str, concepts: Sequence[Concept], *, judged: bool) -> tuple[Profile, int]:
        """How it draws and who judges, and prompts a split; before the model is loaded.

        Args:
            model: As on the command line.
            concepts: What is erased.
            judged: Whether this process looks at the pictures.
        """
        import logging

        from erasers.evaluation.report.judges import settle

        # Else the lines of its retries stand between ours where there is no connection.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        options = self.options
        judges = (options.judge or []) if judged else ["none"]
        return settle(model, concepts, unsafe=options.unsafe, samples=options.samples, judges=judges)

    def plan(self, settled: tuple[Profile, int], pipe: Any) -> Planned:
        """How the pipeline draws it, before there is a patch."""
        from erasers.evaluation.drawing import plan

        profile, samples = settled
        return Planned(
            self.folder, plan(pipe, replace(profile, size=self.options.size or profile.size), self.pictures), samples
        )


@dataclass(frozen=True)
class Planned:
    """A report on a patch that is still to come."""

    folder: Path
    drawing: Drawing
    samples: int

    def make(self, patch: Patch, concepts: Sequence[Concept], facts: dict[str, Any]) -> dict[str, Any]:
        """Draw, judge and write; returns the summary.

        Args:
            patch: What is reported on.
            concepts: What it erases.
            facts: More that belongs into the summary.
        """
        from erasers.evaluation.report.report import make_report

        drawing, folder = self.drawing, check_report_folder(self.folder)
        facts = {**facts, "drawn": drawing.said}
        more: dict[str, Any] = {"profile": drawing.profile, "samples": self.samples, "facts": facts, "console": err}
        return make_report(drawing.pipe, patch, concepts, folder, **more)


def check_drawable(concepts: Sequence[Concept]) -> None:
    """Refuse to report on what is not drawn; such concepts can be erased without a report.

    Raises:
        ValueError: The names of a concept combine sexual content and minors.
    """
    from erasers.evaluation.refusal.refusal import refuse_minors

    try:
        refuse_minors(" ".join(term for concept in concepts for term in concept.terms()))
    except ValueError as error:
        raise ValueError(f"--report: {error}; without --report the concept is erased all the same") from None
