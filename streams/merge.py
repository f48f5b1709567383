"""The ``merge`` stage: profile deltas become panes, panes become windows, windows become verdicts.

The protocol of one message; the numbers stand in the code:

1. *Offset fence.* A message at or below the last applied offset is known: skip it.
   One that is no profiles message goes to the dead letters.
2. *Chain fence* (``streams.chain``). Each link must start where its source partition was left. A gap is a lost message: it is counted in the table,
   and then ``ChainBreakError``, before anything is applied. A gap that outlives the restarts is booked as a hole, and passed.
3. *Merge.* Deltas go into open panes. A pane or series whose value holds this message already (*value fence*: the offset stored beside it) skips it.
   A delta for a closed pane becomes a late contribution to its windows, and so does one that would open a pane more than there is memory for. One
   that is damaged or whose reference is not to be had goes to the dead letters: the ledger shows its events as unaccounted, since its link counts
   them and no window does.
4. *Close.* Panes and windows that the new watermark has passed close in the order of event time and are judged.
5. *Write*, in this order: decisions that a repeat must not take anew, what is no longer needed since an earlier message, open panes, series (newer versions
   before the older ones that they are compared with), deletions of closed panes, and **the chain last**. The runner has the outputs acknowledged before.

A crash leaves a prefix of the writes, and without the chain the message is applied again: what was written has its fence, the rest is computed anew
from the same values, and outputs repeat bit for bit. A closed pane that was not deleted is known by its series, which holds it; so a series that is
forgotten goes one message later. Which versions have a place (``monitor.versions``) and which deltas found no room depends on what is there,
which half of the writes have changed by then: such decisions are the first to be written. The chain is no deletion, and so never the tombstone at the end of a changelog that compaction would take away from under a recovery.

References are found on the compacted ``models`` topic, which may have dropped an old one between two lives of this process. State in its bins cannot
be read then: its rows are left out, and deleted with the next writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final, Literal

from msgspec.structs import replace
from typing_extensions import override

from monitor import wire
from monitor.beside import with_peers
from monitor.errors import IncompatibleError, TransientError
from monitor.judge import Judge
from monitor.panes import (
    MAX_VERSIONS,
    ClosedPane,
    ClosedWindow,
    Panes,
    SeriesKey,
    Windows,
    late_contributions,
)
from monitor.profile import Layout, Profile
from monitor.versions import natural
from monitor.volume import Volume
from streams import merge_table as kept
from streams.calibrate import Samples
from streams.chain import ChainFence
from streams.models import Model
from streams.registry import Lookup
from streams.stage import ChainBreakError, Noted, Output, Stage, Step, dead_letter, read
from streams.topics import Topics, partition_of

_NEVER: Final = -1

PaneKey = tuple[SeriesKey, int]
LetterReason = Literal["damaged", "no_reference"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one partition of ``profiles`` may hold, whatever is sent.

    Attributes:
        versions: of a model, followed one by one; further ones together.
        models: models in all; of further ones no reference is made.
        open_bytes: memory of open panes. Beyond it, models that have more than their fair part open no more: of those, what cannot wait is counted at
            once, as a correction. Twice as much is never exceeded.
    """

    versions: int = MAX_VERSIONS
    models: int = 100
    open_bytes: int = 256 << 20


@dataclass(slots=True)
class _Partition:
    """State of one ``profiles`` partition. Mutable: one owner, the stage."""

    chain: ChainFence
    panes: dict[str, Panes] = field(default_factory=dict)
    judges: dict[SeriesKey, Judge] = field(default_factory=dict)
    fences: dict[PaneKey | SeriesKey, int] = field(default_factory=dict)
    stored: set[PaneKey] = field(default_factory=set)
    orphans: list[bytes] = field(default_factory=list)  # rows to delete with the next message
    crowded: kept.Crowded = field(default_factory=lambda: kept.Crowded(_NEVER, []))
    volumes: dict[str, Volume] = field(default_factory=dict)
    # What a message that may come again has decided.
    decided: dict[str, kept.VolumeState] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)


@dataclass(slots=True)
class _Effects:
    """What one message causes, gathered while it is applied."""

    offset: int
    outputs: list[Output] = field(default_factory=list)
    letters: dict[LetterReason, list[wire.Delta]] = field(default_factory=dict)
    crowded: list[int] = field(default_factory=list)
    panes: dict[PaneKey, Profile] = field(default_factory=dict)
    series: set[SeriesKey] = field(default_factory=set)
    closed: set[PaneKey] = field(default_factory=set)
    volumes: list[kept.VolumeState] = field(default_factory=list)
    writes: list[tuple[bytes, bytes | None]] = field(default_factory=list)


class MergeStage(Stage):
    """Panes, windows and verdicts of the models whose partitions this worker holds.

    Args:
        topics: where outputs go.
        partitions: partitions of the detector's topics.
        lookup: the models and their references.
        sources: partitions of ``predictions``; the watermark waits until all of them were heard of.
        bounds: what a partition may hold.

    Attributes:
        overflow: events beyond a bound, and dead letters, since this process began: for its metrics.
    """

    def __init__(
        self,
        topics: Topics,
        partitions: int,
        lookup: Lookup,
        *,
        sources: int = 1,
        bounds: Bounds = Bounds(),
    ) -> None:
        self._topics, self._partitions, self._lookup = topics, partitions, lookup
        self._sources, self._bounds = sources, bounds
        self.overflow: Counter[Noted] = Counter()
        self._held: dict[int, _Partition] = {}
        self._lost: set[tuple[str, str]] = set()  # model and bins: waited for in vain
        self._waited = False  # in this message, or in this round of restores

    @override
    def restore(self, partition: int, table: Iterable[tuple[bytes, bytes]]) -> None:
        state = self._held[partition] = _Partition(ChainFence(self._sources))
        rows = dict(table)
        state.chain.restore(rows)
        for key, value in kept.having(rows, kept.VERSIONS):
            self._restore_roster(state, key, value)
        for key, value in kept.having(rows, kept.SERIES):
            self._restore_series(state, key, value)
        for panes in state.panes.values():
            panes.adopt()
        for key, value in kept.having(rows, kept.VOLUME):
            self._restore_volume(state, key, value)
        for key, value in kept.having(rows, kept.PANE):
            self._restore_pane(state, key, value)
        if kept.CROWDED in rows:
            state.crowded = kept.decode(rows[kept.CROWDED], kept.Crowded)
        state.samples.restore(rows)

    @override
    def forget(self, partition: int) -> None:
        self._held.pop(partition, None)

    def open_panes(self) -> tuple[int, int]:
        """Panes that are open, and about how many bytes they take."""
        every = [panes for state in self._held.values() for panes in state.panes.values()]
        return sum(len(panes.open) for panes in every), sum(panes.open_bytes for panes in every)

    @override
    def advance(self, topic: str, partition: int, offset: int, value: bytes) -> Iterator[Step]:
        state = self._held.setdefault(partition, _Partition(ChainFence(self._sources)))
        chain, self._waited = state.chain, False
        if offset <= chain.offset:  # 1.
            return
        message = read(value)
        if not isinstance(message, wire.Profiles):
            self.overflow["incompatible"] += 1
            yield dead_letter(self._topics.dlq, "merge", topic, partition, offset, value)
            return
        try:
            admitted = chain.admit(offset, message.links)  # 2.
        except ChainBreakError:
            yield Step(writes=(chain.break_row(),))
            raise
        if admitted is None:
            return
        effects = _Effects(offset)
        self._settle(state)
        for i, delta in enumerate(message.deltas):  # 3.
            self._merge(state, effects, delta, i, f"{partition}:{offset}:{i}")
        for reason, deltas in effects.letters.items():
            effects.outputs.append(self._letter(reason, (topic, partition, offset), deltas))
        chain.advance(offset, admitted)
        if chain.watermark_ms is not None:  # 4.
            self._close(state, effects, chain.watermark_ms)
        self._calibrate(state, effects, message.samples, offset)
        held = sum(panes.held() for panes in state.panes.values())
        effects.outputs += [self._ledger(partition, offset, held, link) for link in admitted.links]
        yield Step(tuple(effects.outputs), tuple(self._writes(state, effects)))  # 5.

    def _model(self, state: _Partition, name: str, bins_id: str) -> Model | None:
        """The model with these bins; ``None`` where nobody knows them, after one wait for whatever is unknown."""
        bins = (name, bins_id)
        if (self._waited or bins in self._lost) and not self._lookup.known(*bins):
            return None
        try:
            model = self._lookup.model(*bins)
        except TransientError:
            self._lost.add(bins)
            self._waited = True
            return None
        self._panes(state, model)
        return model

    def _panes(self, state: _Partition, model: Model) -> Panes:
        name, windows = model.spec.model, model.spec.windows
        if name not in state.panes:
            limit = self._bounds.versions
            state.panes[name] = Panes(windows.pane, windows.sizes, windows.lateness, versions=limit)
            state.volumes[name] = Volume(model.spec)
        return state.panes[name]

    def _merge(
        self, state: _Partition, effects: _Effects, delta: wire.Delta, index: int, name: str
    ) -> None:
        key, offset = (
            SeriesKey(delta.model, delta.version, delta.segment, delta.bins_id),
            effects.offset,
        )
        model = self._model(state, delta.model, delta.bins_id)
        if model is None:
            effects.letters.setdefault("no_reference", []).append(delta)
            return
        panes = state.panes[delta.model]
        try:
            profile = Profile.from_bytes(_layout(model), delta.profile)
        except IncompatibleError:
            effects.letters.setdefault("damaged", []).append(delta)
            return
        is_late = delta.late or panes.is_passed(delta.pane_ms, state.chain.watermark_ms)
        if is_late or not self._has_room(state, effects, (key, delta.pane_ms), index):
            owner = panes.owner_of_late(key)
            for window in late_contributions(owner, delta.pane_ms, profile, panes.sizes_ms):
                effects.outputs.append(self._window(window, offset, contribution=name))
            if not delta.segment:
                self.overflow["versions"] += profile.n * (owner != key)
                self.overflow["open_panes"] += profile.n * (not is_late)
            return
        if (
            panes.is_taken(key, delta.pane_ms)
            and state.fences.get(panes.owner(key, delta.pane_ms), _NEVER) >= offset
        ):
            return
        pane = (key, delta.pane_ms)
        if pane in effects.panes or state.fences.get(pane, _NEVER) < offset:
            effects.panes[key, delta.pane_ms] = panes.add(key, delta.pane_ms, profile)
            state.fences[key, delta.pane_ms] = offset

    def _has_room(self, state: _Partition, effects: _Effects, pane: PaneKey, index: int) -> bool:
        """Whether a delta may be held until its pane closes. As it was decided when the message came for the first time."""
        if state.crowded.offset == effects.offset:
            return index not in state.crowded.deltas
        mine = state.panes[pane[0].model]
        if pane in mine.open or mine.open_bytes < self._bounds.open_bytes / len(state.panes):
            return True
        if sum(panes.open_bytes for panes in state.panes.values()) < self._bounds.open_bytes:
            return True
        effects.crowded.append(index)
        return False

    def _settle(self, state: _Partition) -> None:
        """What earlier messages decided is final, and the series that it ended are of no use any more."""
        for name, panes in state.panes.items():
            gone, empty = panes.settle()
            for key in gone:
                state.orphans.append(kept.series_key(key))
                state.judges.pop(key, None)
                state.fences.pop(key, None)
            state.orphans += [kept.versions_key(name, bins_id) for bins_id in empty]

    def _letter(
        self, reason: LetterReason, where: tuple[str, int, int], deltas: list[wire.Delta]
    ) -> Output:
        topic, partition, offset = where
        self.overflow[reason] += 1
        key = f"merge:{topic}:{partition}:{offset}:{reason}".encode()
        return Output(self._topics.dlq, 0, key, wire.encode(wire.Profiles([], deltas)))

    def _close(self, state: _Partition, effects: _Effects, watermark_ms: int) -> None:
        for name in sorted(state.panes):
            found = self._judged(state, effects, name, watermark_ms)
            found = self._with_volume(state, effects, name, found, watermark_ms)
            # Everything that ends at one time closes in one call, so the last of it is known to be the last.
            for this, following in zip_longest(found, found[1:]):
                last = following is None or following.end_ms > this.end_ms
                effects.outputs.append(
                    self._output(self._topics.verdicts, name, replace(this, closes=last))
                )

    def _judged(
        self, state: _Partition, effects: _Effects, name: str, watermark_ms: int
    ) -> list[wire.Verdicts]:
        """What is found in the panes and windows of a model that close, by their end.

        Those of one end come in the order in which their series are written. So the last of them is the last again if the message comes again after some
        of the series were.
        """
        panes, found = state.panes[name], list[tuple[SeriesKey, wire.Verdicts]]()
        for closed, peers in with_peers(panes.advance(watermark_ms)):
            if isinstance(closed, ClosedPane):
                self._take(state, effects, closed)
            effects.series.add(closed.key)
            judge = self._judge(state, closed.key)
            if isinstance(closed, ClosedPane):
                verdicts = judge.pane(closed.start_ms, panes.pane_ms, closed.profile, peers)
            else:
                state.volumes[name].take(closed)
                effects.outputs.append(
                    self._window(closed, closed.start_ms + closed.size_ms, contribution="")
                )
                verdicts = judge.window(
                    closed.start_ms, closed.size_ms, closed.profile, whole=closed.whole
                )
            if verdicts is not None:
                found.append((closed.key, verdicts))
        turn = {key: i for i, key in enumerate(_in_turn(state, {key for key, _ in found}))}
        found.sort(key=lambda it: (it[1].end_ms, turn[it[0]]))
        return [verdicts for _, verdicts in found]

    def _with_volume(
        self,
        state: _Partition,
        effects: _Effects,
        name: str,
        found: list[wire.Verdicts],
        watermark_ms: int,
    ) -> list[wire.Verdicts]:
        """What was found, with the verdicts on the slots of the week that the watermark has passed.

        Where they were written, and the message comes again, they are what they were: not all windows of it close again.
        """
        volume = state.volumes[name]
        decided = state.decided.pop(name, None)
        if decided is not None and decided.offset == effects.offset:
            volume.drop()
            return volume.messages(found, decided.told, empty=False)
        passed_ms = watermark_ms - state.panes[name].lateness_ms
        if not volume.is_due(passed_ms):
            return found
        told = volume.close(passed_ms)
        effects.volumes.append(
            kept.VolumeState(name, volume.bins_id, effects.offset, volume.snapshot(), told)
        )
        return volume.messages(found, told)

    def _take(self, state: _Partition, effects: _Effects, closed: ClosedPane) -> None:
        """Note which open panes became a closed one."""
        effects.closed.update((part, closed.start_ms) for part in closed.parts)
        if closed.fresh:
            state.judges.pop(closed.key, None)
        if closed.parts != (closed.key,) and not closed.key.segment:
            self.overflow["versions"] += closed.profile.n

    def _judge(self, state: _Partition, key: SeriesKey) -> Judge:
        if key not in state.judges:
            model = self._lookup.model(key.model, key.bins_id)
            state.judges[key] = Judge(key, model.spec, model.reference)
        return state.judges[key]

    def _calibrate(
        self, state: _Partition, effects: _Effects, samples: list[wire.Sample], offset: int
    ) -> None:
        if samples:  # the only time when places are asked for
            for name in filter(self._has_reference, state.samples.models):
                effects.writes += state.samples.finish(name)
        for i, sample in enumerate(samples):
            model = self._lookup.newest(sample.model)
            if model is not None and (
                model.reference is not None or model.spec.reference.calibrate is None
            ):
                continue  # it has a reference, or its owner has to apply the one from a file
            spec = None if model is None else model.spec
            places = self._bounds.models - self._lookup.count()
            taken = state.samples.add(sample, spec, offset, i, places=places)
            effects.writes += taken.writes
            self.overflow["models"] += 0 if taken.accepted else sample.events
            key = sample.model.encode()
            if taken.record is not None:
                effects.outputs.append(Output(self._topics.models, 0, key, taken.record))
            if taken.failure is not None:
                self.overflow["no_reference"] += 1
                reason = f"no reference for {sample.model}: {taken.failure}".encode()
                effects.outputs.append(Output(self._topics.dlq, 0, b"calibration:" + key, reason))

    def _has_reference(self, name: str) -> bool:
        model = self._lookup.newest(name)
        return model is not None and model.reference is not None

    def _writes(self, state: _Partition, effects: _Effects) -> Iterator[tuple[bytes, bytes | None]]:
        yield from self._decisions(state, effects)  # before anything that they depend on is changed
        yield from ((key, None) for key in state.orphans)  # then these: a row may come again
        state.orphans.clear()
        for key, start in sorted(effects.panes.keys() - effects.closed):
            pane = kept.PaneState(
                key, start, state.chain.offset, effects.panes[key, start].to_bytes()
            )
            state.stored.add((key, start))
            yield kept.pane_key(key, start), kept.encode(pane)
        for key in _in_turn(state, effects.series):
            windows = state.panes[key.model].windows[key]
            unfinished = [
                (size, start, profile.to_bytes()) for size, (start, profile) in windows.open.items()
            ]
            judge = state.judges[key].snapshot()
            state.fences[key] = state.chain.offset
            yield (
                kept.series_key(key),
                kept.encode(
                    kept.SeriesState(
                        key,
                        state.chain.offset,
                        windows.first_ms,
                        windows.through_ms,
                        unfinished,
                        judge,
                    )
                ),
            )
        yield from sorted(effects.writes, key=lambda write: write[1] is None)
        for pane_key in sorted(effects.closed):
            state.fences.pop(pane_key, None)
            if pane_key in state.stored:
                state.stored.discard(pane_key)
                yield kept.pane_key(*pane_key), None
        yield from state.chain.rows()

    def _decisions(
        self, state: _Partition, effects: _Effects
    ) -> Iterator[tuple[bytes, bytes | None]]:
        offset = effects.offset
        if effects.crowded:
            state.crowded = kept.Crowded(offset, effects.crowded)
            yield kept.CROWDED, kept.encode(state.crowded)
        for name in sorted(state.panes):
            for bins_id, roster in sorted(state.panes[name].rosters.items()):
                if roster.changed:
                    steps = [(from_ms, dict(live)) for from_ms, live in roster.steps]
                    stored = kept.RosterState(name, bins_id, offset, steps, roster.guests)
                    row = kept.versions_key(name, bins_id)
                    if row in state.orphans:  # it was empty, and is not any more
                        state.orphans.remove(row)
                    yield row, kept.encode(stored)
                roster.recorded = False
        for weeks in effects.volumes:
            yield kept.volume_key(weeks.model), kept.encode(weeks)

    def _model_of(self, state: _Partition, row: bytes, name: str, bins_id: str) -> Model | None:
        """The model of a row; a row that has none is deleted with the next message."""
        model = self._model(state, name, bins_id)
        if model is None:
            state.orphans.append(row)
        return model

    def _restore_roster(self, state: _Partition, row: bytes, value: bytes) -> None:
        stored = kept.decode(value, kept.RosterState)
        if self._model_of(state, row, stored.model, stored.bins_id) is None:
            return
        roster = state.panes[stored.model].roster(stored.bins_id)
        roster.steps, roster.guests = list(stored.steps), stored.guests
        roster.recorded = stored.offset > state.chain.offset

    def _restore_volume(self, state: _Partition, row: bytes, value: bytes) -> None:
        stored = kept.decode(value, kept.VolumeState)
        if self._model_of(state, row, stored.model, stored.bins_id) is None:
            return
        state.volumes[stored.model].restore(stored.weeks)
        if stored.offset > state.chain.offset:
            state.decided[stored.model] = stored

    def _restore_series(self, state: _Partition, row: bytes, value: bytes) -> None:
        stored = kept.decode(value, kept.SeriesState)
        model = self._model_of(state, row, stored.key.model, stored.key.bins_id)
        if model is None:
            return
        sizes = state.panes[stored.key.model].sizes_ms
        windows = Windows(sizes, stored.first_ms, stored.through_ms)
        for size, start, profile in stored.windows:
            windows.open[size] = (start, Profile.from_bytes(_layout(model), profile))
        state.panes[stored.key.model].windows[stored.key] = windows
        state.judges[stored.key] = Judge.restore(
            stored.key, model.spec, model.reference, stored.judge
        )
        state.fences[stored.key] = stored.offset

    def _restore_pane(self, state: _Partition, row: bytes, value: bytes) -> None:
        stored = kept.decode(value, kept.PaneState)
        model = self._model(state, stored.key.model, stored.key.bins_id)
        pane, held = (stored.key, stored.start_ms), state.panes.get(stored.key.model)
        if model is None or held is None or held.is_taken(*pane):
            state.orphans.append(row)
            return
        state.stored.add(pane)
        held.add(*pane, Profile.from_bytes(_layout(model), stored.profile))
        state.fences[pane] = stored.offset

    def _window(self, window: ClosedWindow, revision: int, *, contribution: str) -> Output:
        key = window.key
        message = wire.Window(
            model=key.model,
            version=key.version,
            segment=key.segment,
            size_ms=window.size_ms,
            start_ms=window.start_ms,
            contribution=contribution,
            revision=revision,
            bins_id=key.bins_id,
            n=window.profile.n,
            profile=window.profile.to_bytes(),
        )
        return self._output(self._topics.windows, key.model, message)

    def _ledger(self, partition: int, offset: int, held: int, x: wire.Link) -> Output:
        entry = wire.LedgerEntry(
            profiles_partition=partition,
            offset=offset,
            open=held,
            partition=x.partition,
            start=x.start,
            end=x.end,
            events=x.events,
            dead=x.dead,
            on_time=x.on_time,
            late=x.late,
            calibrating=x.calibrating,
            jump=x.jump,
        )
        return Output(self._topics.windows, partition, None, wire.encode(entry))

    def _output(self, topic: str, model: str, message: wire.Message) -> Output:
        return Output(
            topic, partition_of(model, self._partitions), model.encode(), wire.encode(message)
        )


def _in_turn(state: _Partition, series: set[SeriesKey]) -> list[SeriesKey]:
    """In which order series are written: versions as a whole, the newest first; then segments.

    A version is compared with an older one in panes that close together. As it is written first, no pane of its own closes again after a crash without
    those of the other.
    """

    def age(key: SeriesKey) -> tuple[Any, ...]:
        return state.panes[key.model].windows[key].first_ms or 0, natural(key.version), key

    versions = {key for key in series if not key.segment}
    return [*sorted(versions, key=age, reverse=True), *sorted(series - versions)]


def _layout(model: Model) -> Layout:
    if model.reference is None:
        raise IncompatibleError(f"{model.spec.model} has no reference: nothing can be merged")
    return model.reference.layout
