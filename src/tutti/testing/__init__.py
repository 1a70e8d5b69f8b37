"""Conformance suites: what every adapter of a port must do, as pytest classes to inherit from.

A suite has one fixture to override, which makes the adapter; all its tests then run against it.
"""

import pytest

pytest.register_assert_rewrite(
    "tutti.testing.accounts",
    "tutti.testing.blobs",
    "tutti.testing.fabrics",
    "tutti.testing.ledgers",
    "tutti.testing.logs",
)

from tutti.testing.accounts import AccountSuite  # noqa: E402 - pytest has to know the modules before they are loaded
from tutti.testing.blobs import BlobSuite  # noqa: E402
from tutti.testing.fabrics import FabricSuite, Setup, TokenSuite, authenticate  # noqa: E402
from tutti.testing.ledgers import LedgerSuite  # noqa: E402
from tutti.testing.logs import LogSuite, TrimmedLogSuite  # noqa: E402

__all__ = [
    "AccountSuite",
    "BlobSuite",
    "FabricSuite",
    "LedgerSuite",
    "LogSuite",
    "Setup",
    "TokenSuite",
    "TrimmedLogSuite",
    "authenticate",
]
