"""The acting user, as recorded in ledgers, journals and approvals.

The identity is the process's user id, which only root can change, and never an environment variable: a person can set
`LOGNAME`. Under sudo it is the user who called sudo (`SUDO_UID`), which only root's process is believed.
"""

from __future__ import annotations

import os
import pwd
import socket


def user() -> str:
    """Return the name of the acting user in the user database; `uid-N` for a user who is not in it."""
    uid = os.getuid()
    called_by = os.environ.get("SUDO_UID", "")
    if uid == 0 and called_by.isdecimal():
        uid = int(called_by)
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return f"uid-{uid}"


def actor() -> str:
    """Return `user@host` of this process."""
    return f"{user()}@{socket.gethostname()}"
