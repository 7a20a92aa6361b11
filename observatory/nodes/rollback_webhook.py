"""The webhook of the scheduler that alerts roll back with; `observatory.scheduling.webhook` serves it."""

from __future__ import annotations

from observatory.nodes.unit import Paths


def rollback_token_file(paths: Paths) -> str:
    """Return the file with the token that Alertmanager sends to the scheduler's rollback webhook."""
    return f"{paths.config}/rollback-webhook/token"
