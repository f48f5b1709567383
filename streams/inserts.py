"""From parcels to ClickHouse: inserts that may be repeated, one table at a time, and the binnings that rows need.

Whatever is inserted twice, in whatever cuts and order, and by whomever, leaves the same rows: their keys and revisions
are functions of the log. A sink that was stopped and wakes up after its partitions have moved does no harm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa

from monitor import metrics
from monitor.clickhouse import RefusedError
from monitor.errors import TransientError
from monitor.profile import Layout
from monitor.store import Store
from monitor.tables import TableName
from streams.intake import Parcel, columns, gather
from streams.registry import Registry


def store_parcels(
    target: Store,
    parcels: Sequence[Parcel],
    *,
    refused: Callable[[TableName], None],
    ours: Callable[[], bool] = lambda: True,
) -> bool:
    """Insert the rows of a batch; a message that ClickHouse refuses is rejected, and its rows in later tables are left out.

    Args:
        target: the database.
        parcels: the batch.
        refused: is told of each refused message.
        ours: asked before each table; false is the end.

    Returns:
        Whether all is stored.

    Raises:
        TransientError: some tables may be stored and some not: repeat the whole.
    """
    for name, having in gather(parcels).items():
        if not ours():
            return False
        _store(target, name, having, refused)
    return True


def _store(
    target: Store, name: TableName, parcels: Sequence[Parcel], refused: Callable[[TableName], None]
) -> None:
    fit = [parcel for parcel in parcels if name in parcel.rows]
    if not fit:
        return
    try:
        rows = columns(name, fit)
        with metrics.SINK_INSERT_SECONDS.labels(name).time():
            target.append(name, rows, token=insert_token(name, fit))
    except (RefusedError, pa.ArrowException, OverflowError, TypeError, ValueError) as err:
        if len(fit) == 1:
            detail = str(err) if isinstance(err, RefusedError) else type(err).__name__
            fit[0].reject("refused", f"{name}: {detail}")
            fit[0].rows.clear()
            refused(name)
            return
        half = len(fit) // 2
        _store(target, name, fit[:half], refused)
        _store(target, name, fit[half:], refused)
    else:
        metrics.SINK_ROWS.labels(name).inc(rows.num_rows)
        metrics.SINK_INSERTS.labels(name).inc()


def insert_token(name: TableName, parcels: Iterable[Parcel]) -> str:
    """Equal for equal messages. Times are part of it, as offsets start anew with a topic that is created again."""
    spans: dict[tuple[str, int], list[int]] = {}
    for parcel in parcels:
        message = parcel.message
        place = (message.topic() or "", message.partition() or 0)
        here = (message.offset() or 0, message.timestamp()[1])
        spans.setdefault(place, [*here, *here, 0])[2:] = [
            *here,
            spans.get(place, [0] * 5)[4] + 1,
        ]
    return f"{name}:{hashlib.sha256(repr(sorted(spans.items())).encode()).hexdigest()[:32]}"


def count_refused(name: TableName) -> None:
    """Note that a message was refused."""
    metrics.SINK_REFUSED.labels(name).inc()


class KnownLayouts:
    """Binnings by id: remembered, then from ClickHouse, then from the ``models`` topic. They never change, so there is nothing to expire.

    What nobody knows is not remembered: its reference may be published a moment later.
    """

    def __init__(self, target: Store, registry: Registry) -> None:
        self._target, self._registry = target, registry
        self._known: dict[str, Layout] = {}

    def __call__(self, model: str, bins_id: str) -> Layout | None:
        """The binning, or ``None`` if nobody knows it.

        Raises:
            TransientError: ClickHouse does not answer.
        """
        if bins_id in self._known:
            return self._known[bins_id]
        found = self._target.layout(bins_id) or self._published(model, bins_id)
        if found is not None:
            self._known[bins_id] = found
        return found

    def _published(self, model: str, bins_id: str) -> Layout | None:
        try:
            reference = self._registry.model(model, bins_id).reference
        except TransientError:
            return None  # it has waited for the topic already
        return None if reference is None else reference.layout
