"""The API against its own description: Schemathesis sends what the OpenAPI allows and what it does not, over a real database."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from monitor import store
from tests.monitor.serving import SECRETS, application, served
from tests.monitor.stored import endpoint, fill

EXAMPLES = 5  # of each operation, beside those that cover each of its parameters


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_whatever_is_asked_is_answered_as_the_description_says(tmp_path: Path) -> None:
    with endpoint(tmp_path / "data") as database:
        store.migrate(database)
        link = store.connect(database)
        fill(link, days=3)
        with served(application(link)) as address:
            argv = [
                *(sys.executable, "-c", "import schemathesis.cli; schemathesis.cli.schemathesis()"),
                *("run", f"{address}/api/v1/openapi.json", "--no-color"),
                *("--header", f"X-API-Key: {SECRETS['all']}"),
                *("--phases", "examples,coverage,fuzzing"),
                *("--max-examples", str(EXAMPLES), "--seed", "7", "--generation-deterministic"),
                # Rules of several members at once, and a model's own join key: no schema can say them.
                *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
            ]
            ran = subprocess.run(
                argv, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200
            )
        link.close()
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr
    assert "No issues found" in ran.stdout
