"""What the rollout document wants of an instance of the service while an `up` starts it.

A rollback needs no deployment lock, so it may change the document after an `up` has read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from observatory.documents.rollout import FileRolloutStore, FleetState, StaleRolloutError
from observatory.nodes.storage import unit_name
from observatory.settings import FleetName

INPUT = "rollout"  # of an instance: the document, its fleet, and the digest of the release that it was declared with


def declared(document: Path, fleet: FleetName, sha256: str) -> dict[str, str]:
    """Return the input that names what an instance was declared from; no `diff` compares it."""
    return {"document": str(document), "fleet": fleet, "sha256": sha256}


def check_wanted(props: Mapping[str, Any]) -> None:
    """Check that the document still wants of an instance what `props` declare; another daemon is not in it.

    Raises:
        StaleRolloutError: it wants another release now, or has stopped the instance, or has it run again.
    """
    if INPUT not in props:
        return
    store = FileRolloutStore(Path(props[INPUT]["document"]))
    current = store.read()
    if current is None:
        return
    state = current.fleet(props[INPUT]["fleet"])
    if _wanted(state, props["name"]) != (props[INPUT]["sha256"], bool(props.get("stopped"))):
        raise StaleRolloutError(
            f"{store.path} has changed since this `up` read it, by a rollback or a deployment: {props['name']} is not "
            "run as it was declared. Run `observatory up` again"
        )


def _wanted(state: FleetState, name: str) -> tuple[str, bool]:
    """Return the digest of the release that an instance is to run, and whether it is stopped."""
    return state.release(name.removeprefix(unit_name(""))).sha256, bool(state.stopped)
