"""Control requests to a running deployment: pause, resume, promote, abort."""

from __future__ import annotations

from observatory.delivery.deployment import current_document
from observatory.delivery.environment import Environment
from observatory.delivery.errors import DeliveryRefusedError
from observatory.documents.rollout import RolloutDocument, StaleRolloutError


def send_control_request(environment: Environment, request: str | None) -> RolloutDocument:
    """Ask something of the deployment that runs at another terminal: pause, promote, abort; None resumes.

    Raises:
        DeliveryRefusedError: none runs.
    """
    while True:
        current = current_document(environment)
        if current.deployment is None or current.deployment.ended:
            raise DeliveryRefusedError("no deployment is under way")
        asked = current.deployment.model_copy(update={"request": request})
        try:
            written = environment.store.compare_and_set(current, current.model_copy(update={"deployment": asked}))
        except StaleRolloutError:
            continue
        environment.journal.record("ask", deployment=asked.id, version=asked.version, request=request or "resume")
        return written
