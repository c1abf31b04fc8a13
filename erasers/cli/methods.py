"""`erase methods`: the methods, their options, and their presets."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import get_type_hints

from rich.markup import escape

from erasers.cli.console import out


def methods() -> None:
    """List the methods, their options with defaults, and their presets; last those for models of transformers."""
    from erasers.eraser import eraser_class, list_erasers
    from erasers.options import describe

    for name in [*list_erasers(), *list_erasers("models")]:
        cls = eraser_class(name)
        hints = get_type_hints(cls)
        first = " ".join((cls.__doc__ or "").strip().partition("\n\n")[0].split())
        out.print(f"[bold cyan]{name}[/bold cyan]  {escape(first)}")
        for field in fields(cls):
            default = "required" if field.default is MISSING else f"{field.default}"
            hint = escape(describe(hints[field.name]))
            out.print(f"  --set [cyan]{field.name}[/cyan]={escape(default)}  [dim]{hint}[/dim]")
        if cls.presets:
            out.print(f"  presets: {', '.join(sorted(cls.presets))}")
