"""Writes a rollout document again that could be read from a copy or an earlier version only."""

from __future__ import annotations

from contextlib import suppress

from observatory.delivery.environment import RolloutStore
from observatory.documents.rollout import StaleRolloutError
from observatory.progress import Phase, Progress, Reporter


def recover_rollout(store: RolloutStore, report: Reporter) -> None:
    """Write the document again if it is damaged or missing, and report what was wrong with it."""
    current = store.read()
    if current and (problem := store.problem):
        with suppress(StaleRolloutError):  # a deployment has written it meanwhile
            store.compare_and_set(current, current)
        report(Progress(task=f"rollout document recovered: {problem}", phase=Phase.WARNED))
