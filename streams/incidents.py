"""The ``incidents`` stage: verdicts and commands become incidents, and what has to be sent goes to the outbox.

The meaning is in ``alerting``; this adapter owns topics, keys and durability. The protocol of one message:

1. *Value fence.* The model's book holds the last applied offset of each topic: a message at or below it is skipped. One of
   another kind, or that cannot be read, goes to the dead letters.
2. *Decide.* The incident machine and the notification plan give a new book, incidents and outbox items.
3. *Send*, then *write*: the runner has the outputs acknowledged before the book is written. A crash in between applies
   the message again to the old book, which gives the same outputs with the same ids.

Everything stays in the partition that it came from, which is the model's. ``incidents`` is keyed by incident and
``outbox`` by item: both topics are compacted, and a key per model or incident would let compaction drop what is unsent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from msgspec.structs import replace
from typing_extensions import override

from alerting.book import Book, Rules, decode_book, encode_book
from alerting.incidents import DEFAULT_RULES, Change, command, step
from alerting.notify import plan
from monitor import wire
from monitor.wire import Command, OutboxItem, Verdicts
from streams.registry import Lookup
from streams.stage import Noted, Output, Stage, Step, dead_letter, read
from streams.topics import Topics

_BOOK: Final = b"book/"


class IncidentStage(Stage):
    """The incidents of the models whose partitions this worker holds. Mutable: it owns their books.

    Args:
        topics: where outputs go.
        lookup: notify targets and actions of the models; for an unknown model nothing is sent.
        rules: how verdicts become incidents.

    Attributes:
        overflow: incidents that were not opened since there are enough, and dead letters, since this process began: for its metrics.
    """

    def __init__(self, topics: Topics, lookup: Lookup, rules: Rules = DEFAULT_RULES) -> None:
        self._topics, self._lookup, self._rules = topics, lookup, rules
        self._books: dict[int, dict[str, Book]] = {}
        self.overflow: Counter[Noted] = Counter()

    @override
    def restore(self, partition: int, table: Iterable[tuple[bytes, bytes]]) -> None:
        books = (decode_book(value) for key, value in table if key.startswith(_BOOK))
        self._books[partition] = {book.model: book for book in books}

    @override
    def forget(self, partition: int) -> None:
        self._books.pop(partition, None)

    @override
    def advance(self, topic: str, partition: int, offset: int, value: bytes) -> Iterator[Step]:
        message = read(value)
        if not isinstance(message, Verdicts | Command):
            self.overflow["incompatible"] += 1
            yield dead_letter(self._topics.dlq, "incidents", topic, partition, offset, value)
            return
        books = self._books.setdefault(partition, {})
        book = books.get(message.model, Book(message.model))
        if offset <= book.offsets.get(topic, -1):  # 1.
            return
        decided, changes = self._decide(book, message)  # 2.
        model = self._lookup.newest(message.model)
        decided, published, items = plan(decided, changes, model.spec if model else None)
        if decided is book:
            return  # a repeat at a new offset, or a command about nothing: there is nothing to remember
        self.overflow["incidents"] += _not_opened(decided) - _not_opened(book)
        decided = replace(decided, offsets={**decided.offsets, topic: offset})
        books[message.model] = decided
        outputs = (*self._incidents(partition, published), *self._outbox(partition, items))
        key = _BOOK + message.model.encode()
        yield Step(outputs, ((key, encode_book(decided)),))  # 3.

    def _decide(self, book: Book, message: Verdicts | Command) -> tuple[Book, tuple[Change, ...]]:
        if isinstance(message, Command):
            return command(book, message)
        return step(book, message, self._rules)

    def _incidents(self, partition: int, changes: Iterable[Change]) -> Iterator[Output]:
        for change in changes:
            incident = change.incident
            value = wire.encode(incident)
            yield Output(self._topics.incidents, partition, incident.id.encode(), value)

    def _outbox(self, partition: int, items: Iterable[OutboxItem]) -> Iterator[Output]:
        for item in items:
            yield Output(self._topics.outbox, partition, item.id.encode(), wire.encode(item))


def _not_opened(book: Book) -> int:
    return book.counters.get("not_opened", 0)  # as alerting.incidents counts them
