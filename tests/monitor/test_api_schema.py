"""The API against its own description: Schemathesis sends what the OpenAPI allows and what it does not, over a real database."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from monitor import store
from tests.monitor.serving import SECRETS, application, served
from tests.monitor.stored import FIRING, MODEL, endpoint, fill
from tests.monitor.test_api_access import NEEDED

# But for the page of signed links, which is for people, the description itself, which Schemathesis reads, and what has no end.
OPERATIONS = NEEDED.keys() - {
    "GET /approve", "POST /approve", "GET /api/v1/openapi.json", "GET /api/v1/changes",
}  # fmt: skip
EXAMPLES = 5  # of each operation, beside those that cover each of its parameters


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_whatever_is_asked_is_answered_as_the_description_says(tmp_path: Path) -> None:
    with endpoint(tmp_path / "data") as database:
        store.migrate(database)
        link = store.connect(database)
        reference = fill(link, days=3)
        # Names of what is there: a made-up one finds nothing, and shows no answer.
        known = {
            "path.model": MODEL,
            "path.version": "7",
            "path.feature": "wind_speed",
            "path.bins_id": reference.layout.bins_id,
            "path.incident_id": FIRING,
        }
        lines = [f'"{name}" = "{value}"' for name, value in known.items()]
        (tmp_path / "schemathesis.toml").write_text("\n".join(["[parameters]", *lines]))
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
    told = re.search(r"Selected: (\d+)/(\d+)\s+Tested: (\d+)", ran.stdout)
    assert told, ran.stdout
    assert len({len(OPERATIONS), *map(int, told.groups())}) == 1, "all of them"
