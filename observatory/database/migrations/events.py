"""Progress events of a deployment, for terminals and logs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

EventKind = Literal["waiting", "backup", "applying", "blocked", "statement", "retrying", "notice", "applied", "finding"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One step of a deployment.

    Attributes:
        kind: `waiting` for another deployment; `backup` being made or verified; `applying` a file; `blocked` by other
            sessions; a `statement` of the file finished; `retrying` after a lock timeout; a `notice` or warning of
            PostgreSQL with its severity; `applied` and committed; a `finding` of the linter that does not stop the
            deployment.
        migration: the file's name, `001_initial_schema`; None for an event of the whole deployment.
        detail: description in one line.
    """

    kind: EventKind
    migration: str | None
    detail: str


OnEvent = Callable[[Event], None]


def report_event(on_event: OnEvent | None, kind: EventKind, migration: str | None, detail: str) -> None:
    """Pass an event to `on_event`, where there is one."""
    if on_event:
        on_event(Event(kind=kind, migration=migration, detail=detail))
