"""Foreign text in Markdown."""

from __future__ import annotations

import re
import unicodedata


def markdown_text(value: object, limit: int = 120) -> str:
    """Foreign text as one line of plain Markdown: nothing in it is markup, a link, HTML or a control character."""
    plain = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in str(value))
    line = " ".join(plain.split())
    short = line if len(line) <= limit else line[: limit - 3] + "..."
    return re.sub(r"([\\`*_\[\](){}#!|<>&~:@$^]|(?<=[A-Za-z])\.)", r"\\\1", short)
