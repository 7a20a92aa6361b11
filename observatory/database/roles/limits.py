"""What a role may take of the server: connections and time."""

from __future__ import annotations

from dataclasses import dataclass


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
