"""The list of all models: what the last window of each says, of whatever is stored beside it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from monitor import store
from monitor.overview import fleet
from monitor.store import Store
from monitor.tables import to_table
from tests.monitor import builders
from tests.monitor.builders import HOUR, MINUTE, MODEL
from tests.monitor.stored import endpoint
from tests.monitor.test_rollups import START, events, put, window


@pytest.fixture
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with endpoint(tmp_path_factory.mktemp("overview")) as settings:
        store.migrate(settings)
        opened = store.connect(settings)
        yield opened
        opened.close()


def test_the_newest_revision_of_the_last_windows_counts(link: Store) -> None:
    spec, reference, rng = builders.spec(), builders.reference(), np.random.default_rng(3)
    known = {reference.layout.bins_id: reference}
    rows = [
        (MODEL, spec.model_dump_json(), reference.layout.bins_id, 1),
        ("new", spec.model_dump_json(), "", 1),
    ]
    link.append("models", to_table("models", rows), token="models")
    setting = "max_bytes_to_merge_at_max_space_in_pool = 1"  # no merge: both revisions stay
    link.link.execute(f"ALTER TABLE windows MODIFY SETTING {setting}")
    last = START + HOUR - MINUTE
    stored = [
        window(reference, events(reference, rng, 500), START, size_ms=HOUR),  # it ends as late
        window(reference, events(reference, rng, 30), START, version="6"),
        window(reference, events(reference, rng, 40), last - MINUTE),
        window(reference, events(reference, rng, 50), last),
        window(reference, events(reference, rng, 60), last, revision=2),
        window(reference, events(reference, rng, 9), last, contribution="late"),
        window(reference, events(reference, rng, 20), last, version="8"),
        window(reference, events(reference, rng, 7), last + MINUTE, segment="carrier=UA"),
    ]
    for number, each in enumerate(stored):
        put(link, known, [each], f"w{number}")
    found = {row.model: row for row in fleet(link, limit=10)}
    row = found[MODEL]
    assert (row.last_ms, row.serving, row.versions) == (START + HOUR, ["7", "8"], 3)
    assert row.rate == pytest.approx((60 + 9 + 20) / 60)
    assert (found["new"].last_ms, found["new"].versions, found["new"].serving) == (None, 0, [])
