"""Limits of a role: connections and timeouts."""

from __future__ import annotations

from dataclasses import dataclass

from observatory.documents.logins import PairedRole

POOL_RESERVE = 5  # extra connections of the service's login, for restarts of the pooler and direct sessions


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of one login.

    Attributes:
        connections: concurrent sessions.
        statement_timeout_s: longest time of a statement, in seconds; None: no limit.
        lock_timeout_s: longest wait for a lock, in seconds.
        idle_in_transaction_s: longest idle time in an open transaction, in seconds.
    """

    connections: int
    statement_timeout_s: int | None = None
    lock_timeout_s: int
    idle_in_transaction_s: int

    @property
    def settings(self) -> dict[str, str | int]:
        """The timeouts as PostgreSQL's settings, in milliseconds; 0 is no limit."""
        return {
            "statement_timeout": 1000 * (self.statement_timeout_s or 0),
            "lock_timeout": 1000 * self.lock_timeout_s,
            "idle_in_transaction_session_timeout": 1000 * self.idle_in_transaction_s,
        }


READONLY_LIMITS = Limits(connections=10, statement_timeout_s=60, lock_timeout_s=5, idle_in_transaction_s=60)
ADMIN_LIMITS = Limits(connections=5, statement_timeout_s=900, lock_timeout_s=10, idle_in_transaction_s=300)
MONITOR_LIMITS = Limits(connections=5, statement_timeout_s=10, lock_timeout_s=3, idle_in_transaction_s=10)


def limits_of(role: PairedRole, *, pool_size: int) -> Limits:
    """Return the limits of each login of a role; `pool_size` is the pooler's for each login."""
    if role == "app":
        connections = pool_size + POOL_RESERVE
        return Limits(connections=connections, statement_timeout_s=30, lock_timeout_s=10, idle_in_transaction_s=30)
    return READONLY_LIMITS if role == "readonly" else ADMIN_LIMITS
