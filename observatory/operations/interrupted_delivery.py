"""Says what an interrupted deployment or rollback has changed: by the rollout document before and after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from observatory.documents.rollout import Deployment, RolloutDocument
from observatory.errors import ObservatoryError
from observatory.platforms.platform import Platform


@contextmanager
def explained_interruption(platform: Platform) -> Iterator[None]:
    """Add to a KeyboardInterrupt of the block a note that says what really happened.

    An inner block's note stays: it is the more exact one.
    """
    before = platform.rollout_store.read()
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not getattr(interrupt, "__notes__", ()):
            with suppress(ObservatoryError):  # the document is unreadable: earlier events say so
                interrupt.add_note(outcome_of(before, platform.rollout_store.read()))
        raise


def outcome_of(before: RolloutDocument | None, after: RolloutDocument | None) -> str:
    """Return what a deployment that was interrupted between two revisions of the document has changed."""
    if after is None or after.deployment is None or (before and before.revision == after.revision):
        return "the fleets and their traffic were not changed"
    found = after.deployment
    if found.status == "rolled-back":
        return (
            f"{found.version} was rolled back: {found.source} has {after.fleet(found.source).weight} % of the traffic"
        )
    if found.status == "promoted":
        return f"{found.version} is promoted: {found.target} has {after.fleet(found.target).weight} % of the traffic"
    return _unfinished(found, after)


def _unfinished(found: Deployment, after: RolloutDocument) -> str:
    weights = ", ".join(f"{fleet} {weight} %" for fleet, weight in after.weights.items())
    return (
        f"the deployment of {found.version} to {found.target} is {found.status} ({weights}): run the same command to "
        "continue it, or `observatory rollback --method blue-green` to undo it"
    )
