"""What the pages of this library have in common: everything is inside them, and nothing else may load or run."""

from __future__ import annotations

import base64
import hashlib
import html
import unicodedata
from importlib.resources import files


def plain(value: object) -> str:
    """Foreign text as plain text: no markup, no control characters, no marks that turn the direction of writing."""
    kept = "".join(" " if unicodedata.category(c)[0] == "C" else c for c in str(value))
    return html.escape(kept, quote=True)


def document(title: str, body: str, assets: str) -> str:
    """A whole page.

    Args:
        title: Foreign text.
        body: Markup.
        assets: Name of the style and the script, and of their package, without `.css` and `.js`.
    """
    style, script = (_data(assets, kind) for kind in ("css", "js"))
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{plain(title)}</title>
<style>{style}</style>
</head>
<body>
{body}<script>{script}</script>
</body>
</html>
"""


def _data(assets: str, kind: str) -> str:
    return (files(f"erasers.evaluation.{assets}") / f"{assets}.{kind}").read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
