"""Whose certificates are trusted when we call somebody."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx

from monitor.errors import ConfigError


def trust(ca_file: Path | None = None, setting: str = "dispatcher.ca_file") -> ssl.SSLContext:
    """TLS that trusts the public authorities, and those of a PEM file beside them.

    Raises:
        ConfigError: the file, which a ``setting`` names, cannot be read, or holds no certificate.
    """
    context = httpx.create_ssl_context(trust_env=False)
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as err:  # SSLError is one
            raise ConfigError(f"{setting}: {ca_file} holds no certificates") from err
    return context
