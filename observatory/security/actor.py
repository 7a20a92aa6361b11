"""The acting user, as recorded in ledgers and journals."""

from __future__ import annotations

import getpass
import socket


def actor() -> str:
    """Return `user@host` of this process."""
    return f"{getpass.getuser()}@{socket.gethostname()}"
