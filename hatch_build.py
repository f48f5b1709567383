"""Compiles ``monitor/*.c`` into the wheel, and into the checkout for an editable install. Where that fails, Driftline does without: ``monitor/kernel.py``."""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# No contraction: a fused multiply and add would round once where numpy rounds twice.
_FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=off", "-shared", "-fPIC")
_SOURCES = ("kernel.c", "counting.c")


class KernelHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs ``$CC``, or ``cc``. The library is loaded by ctypes: one does for every release of Python."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say that the wheel is of this platform."""
        folder = Path(self.root, "monitor")
        library = folder / "_kernel.so"
        made = library.with_suffix(f".{os.getpid()}")  # a process may have the old one open
        sources = [str(folder / name) for name in _SOURCES]
        command = [*shlex.split(os.environ.get("CC", "cc")), *_FLAGS, "-o", str(made), *sources]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as err:
            said = getattr(err, "stderr", "") or str(err)
            library.unlink(missing_ok=True)
            self.app.display_warning(
                f"events will be read more slowly, without monitor/*.c: {said.strip()}"
            )
            return
        made.replace(library)
        build_data["artifacts"].append("monitor/_kernel.so")
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
