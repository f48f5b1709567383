"""Certificates for servers of tests."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


def authority(directory: Path, host: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate authority's file, and the context of a server of this name that it vouches for."""
    made = trustme.CA()
    path = directory / "ca.pem"
    made.cert_pem.write_to_path(path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.issue_cert(host).configure_cert(context)
    return path, context
