"""The page on pictures as prompts has the figures that were measured."""

from __future__ import annotations

import json

from support import REPOSITORY


def test_the_page_has_the_figures() -> None:
    """The channel is open before, and co_erasing closes it further than ESD where the concept is named, too."""
    result = json.loads((REPOSITORY / "benchmarks/results/shapes-image-prompt.json").read_text())
    shares = result["shares"]
    assert min(share["low"] for share in shares["unedited"].values()) > 0.9
    assert shares["co_erasing"]["picture and name"]["high"] < shares["esd"]["picture and name"]["low"]
    page = (REPOSITORY / "docs/images.md").read_text()
    for name, row in shares.items():
        cells = [f"{100 * s['value']:.0f} ({100 * s['low']:.0f}-{100 * s['high']:.0f})" for s in row.values()]
        [line] = [line for line in page.splitlines() if line.startswith((f"| {name} ", f"| `{name}` "))]
        assert line.endswith(f"| {' | '.join(cells)} |")
    assert f"per cent of {shares['esd']['picture alone']['n']} pictures" in page
