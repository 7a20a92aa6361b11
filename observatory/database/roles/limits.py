"""What a role may take of the server: connections and time."""

from __future__ import annotations

from dataclasses import dataclass

from observatory.documents.logins import PairedRole

POOL_RESERVE = 5  # connections of the service's login beyond the pooler's: restarts of the pooler, direct sessions


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Of one login.

    Attributes:
        connections: sessions at once.
        statement_timeout_s: of one statement, in seconds; None: as long as it takes.
        lock_timeout_s: of the wait for one lock, in seconds.
        idle_in_transaction_s: that a session may do nothing in an open transaction, in seconds.
    """

    connections: int
    statement_timeout_s: int | None = None
    lock_timeout_s: int
    idle_in_transaction_s: int

    @property
    def settings(self) -> dict[str, str | int]:
        """The timeouts as PostgreSQL's settings, in milliseconds; 0 is none."""
        return {
            "statement_timeout": 1000 * (self.statement_timeout_s or 0),
            "lock_timeout": 1000 * self.lock_timeout_s,
            "idle_in_transaction_session_timeout": 1000 * self.idle_in_transaction_s,
        }


READONLY_LIMITS = Limits(connections=10, statement_timeout_s=60, lock_timeout_s=5, idle_in_transaction_s=60)
ADMIN_LIMITS = Limits(connections=5, statement_timeout_s=900, lock_timeout_s=10, idle_in_transaction_s=300)
MONITOR_LIMITS = Limits(connections=5, statement_timeout_s=10, lock_timeout_s=3, idle_in_transaction_s=10)


def limits_of(role: PairedRole, *, pool_size: int) -> Limits:
    """Return what each login of a role may take; `pool_size` is the pooler's for each login."""
    if role == "app":
        connections = pool_size + POOL_RESERVE
        return Limits(connections=connections, statement_timeout_s=30, lock_timeout_s=10, idle_in_transaction_s=30)
    return READONLY_LIMITS if role == "readonly" else ADMIN_LIMITS
