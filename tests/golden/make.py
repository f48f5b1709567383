"""Write the golden files of this release: ``python -m tests.golden.make`` from the repository's root.

``tests/golden/<version>/NAME.bin`` is what this release stores or sends, and ``NAME.json`` what that must mean, to this release and to each that
comes after it. Files of a version that was released are never made anew.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from tests.golden.samples import new_record, samples

FOLDER: Final = Path(__file__).parent


def main() -> None:
    """Make all files of the installed version."""
    folder = FOLDER / version("driftline")
    folder.mkdir(exist_ok=True)
    record = new_record()
    for name, sample in samples(record).items():
        value = sample.write()
        meaning = msgspec.json.encode(sample.understand(value))
        (folder / f"{name}.bin").write_bytes(value)
        (folder / f"{name}.json").write_bytes(msgspec.json.format(meaning, indent=1) + b"\n")


if __name__ == "__main__":
    main()
