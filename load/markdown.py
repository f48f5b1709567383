"""Tables as Markdown, and the places in the README that are made of them.

A generated block stands between ``<!-- NAME: command -->`` and ``<!-- /NAME -->``; whatever is between is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    if any(len(line) != len(header) for line in lines):
        raise ValueError("each row needs as many cells as the header")
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replace_block(text: str, name: str, body: str) -> str:
    """``text`` with the block ``name`` holding ``body``.

    Raises:
        ValueError: there is no such block, or two.
    """
    name = re.escape(name)
    pattern = re.compile(rf"(<!-- {name}\b[^\n]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
    replaced, found = pattern.subn(lambda match: f"{match[1]}{body}\n{match[2]}", text)
    if found != 1:
        raise ValueError(f"{found} blocks are called {name}; there must be one")
    return replaced


def write_block(path: Path, name: str, body: str) -> None:
    """Put ``body`` into the block ``name`` of a file."""
    text = path.read_text(encoding="utf-8")
    path.write_text(replace_block(text, name, body), encoding="utf-8")
