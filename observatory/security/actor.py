"""Who does something, as ledgers and journals write it down."""

from __future__ import annotations

import getpass
import socket


def actor() -> str:
    """Return `user@host` of this process."""
    return f"{getpass.getuser()}@{socket.gethostname()}"
