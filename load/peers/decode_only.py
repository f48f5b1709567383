"""Reads and decodes, and drops what it decoded: ``python -m load.peers.decode_only BOOTSTRAP TOPIC EVENTS``."""

from __future__ import annotations

import logging
import sys

import msgspec
from confluent_kafka import Consumer

from load.peers.measured import Meter
from monitor.events import Event
from streams.clients import KafkaSettings, consumer_config


def main(bootstrap: str, topic: str, events: int) -> None:
    """Decode so many messages."""
    settings = KafkaSettings(bootstrap, client_id="bench")
    consumer = Consumer(consumer_config(settings, "decode-only", logging.getLogger(__name__)))
    consumer.subscribe([topic])
    decoder = msgspec.json.Decoder(Event)
    meter, done, first = Meter(), 0, 0
    while done < events:
        for message in consumer.consume(10_000, timeout=1.0):
            if message.error() is None:
                decoder.decode(message.value() or b"")
                done += 1
        if done and not first:  # joining the group is not what is measured
            first = done
            meter.start()
    meter.report(done - first)
    consumer.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
