"""The README's picture of the demo, from the report of a run: ``python -m load.pictures r.json .github/demo.svg``."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.terminal_theme import TerminalTheme

from streams.demo.report import Report
from streams.demo.screen import closing

WIDTH: Final = 118
# Readable on GitHub's light and dark pages: the picture brings its own background.
THEME: Final = TerminalTheme(
    (22, 27, 34),
    (230, 237, 243),
    [(72, 79, 88), (255, 123, 114), (126, 231, 135), (255, 166, 87), (121, 192, 255), (210, 168, 255), (165, 214, 255), (177, 186, 196)],
    [(110, 118, 129), (255, 161, 152), (86, 211, 100), (227, 179, 65), (121, 192, 255), (188, 140, 255), (86, 212, 221), (240, 246, 252)],
)  # fmt: skip
# rich's own frame loads a font from a CDN; a picture in a repository loads nothing.
FRAME: Final = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="Closing tables of the demo">
<style>.{unique_id}-matrix {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
{styles}</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>{lines}</defs>
<rect fill="#161b22" x="0" y="0" width="{width}" height="{height}" rx="8"/>
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


def draw(report: Report) -> str:
    """The closing tables as an SVG that needs nothing else."""
    console = Console(
        width=WIDTH, record=True, file=io.StringIO(), force_terminal=True, highlight=False
    )
    console.print("$ make demo", style="bold")
    console.print(closing(report))
    return console.export_svg(theme=THEME, code_format=FRAME, unique_id="demo")


def main() -> None:
    """Read the report that is named first and write the picture that is named second."""
    source, target = (Path(name) for name in sys.argv[1:3])
    target.write_text(draw(msgspec.json.decode(source.read_bytes(), type=Report)), encoding="utf-8")


if __name__ == "__main__":
    main()
