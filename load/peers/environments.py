"""Environments of the libraries that ours is compared with: ``python -m load.peers.environments``.

Each gets ``.peers/NAME``, with what ``load/peers/NAME.txt`` names: they need releases of numpy and pandas that exclude each other, and none is a dependency of ours. One that is
whole is left as it is; one that is not, or whose file has changed, is made anew. How a file is made, with the line of ``WANTED``: ``echo ... | uv pip compile - --python-version 3.11 --no-header --no-annotate --no-emit-index-url``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

# What is asked for, beside the library what it needs and does not name itself.
WANTED: Final[Mapping[str, Sequence[str]]] = {
    "whylogs": ("whylogs==1.6.4", "numpy<2", "pandas<3", "pyarrow<20"),
    "evidently": ("evidently==0.7.*", "pandas<3", "pyarrow"),
    "nannyml": ("nannyml==0.13.1", "pyarrow", "statsmodels"),
    "river": ("river==0.23.0", "pandas", "pyarrow", "typing-extensions"),
}
NAMES: Final = tuple(WANTED)
ROOT: Final = Path(__file__).parents[2]
_WHOLE: Final = "installed.txt"  # in an environment: what was installed, once all of it was
_PATIENCE_S: Final = 1_800.0


class PeerMissingError(Exception):
    """The environment of a library is not there, or not whole; the message says what makes it."""


def pins(name: str) -> Path:
    """The exact version of everything in it."""
    return Path(__file__).with_name(f"{name}.txt")


def python(name: str, root: Path = ROOT) -> Path:
    """Its interpreter.

    Raises:
        PeerMissingError: it is not whole.
    """
    home = root / ".peers" / name
    if not _whole(home, pins(name)):
        raise PeerMissingError(f"{home} is not whole: run python -m load.peers.environments")
    return home / "bin" / "python"


def _whole(home: Path, wanted: Path) -> bool:
    mark = home / _WHOLE
    return mark.is_file() and mark.read_bytes() == wanted.read_bytes()


def make(name: str, root: Path = ROOT) -> bool:
    """Make it, unless it is whole; whether there was anything to do.

    Raises:
        subprocess.CalledProcessError: uv could not install it, and has said why.
    """
    home, wanted = root / ".peers" / name, pins(name)
    if _whole(home, wanted):
        return False
    shutil.rmtree(home, ignore_errors=True)
    uv = [sys.executable, "-m", "uv"]
    _run([*uv, "venv", "--quiet", "--python", "3.11", str(home)])
    _run([*uv, "pip", "install", "--quiet", "--python", str(home / "bin" / "python"), "-r", str(wanted)])  # fmt: skip
    shutil.copyfile(wanted, home / _WHOLE)
    return True


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, timeout=_PATIENCE_S)


def main() -> int:
    """Make all that are missing; 1 if one cannot be made."""
    failed = 0
    for name in NAMES:
        try:
            print(f"{name}: {'made' if make(name) else 'whole already'}", flush=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
