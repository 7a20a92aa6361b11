"""Control requests to a running deployment: pause, resume, promote, abort."""

from __future__ import annotations

from observatory.delivery.convergence import current_document, naming_traffic
from observatory.delivery.environment import Environment
from observatory.delivery.errors import DeliveryRefusedError
from observatory.documents.rollout import Request, RolloutDocument, StaleRolloutError


def send_control_request(environment: Environment, request: Request | None) -> RolloutDocument:
    """Write a control request to the rollout document, where the deployment reads it; None resumes a paused one.

    Raises:
        DeliveryRefusedError: no deployment is under way.
        RolloutError: the document cannot be read or written; the message has the traffic weights.
    """
    with naming_traffic(environment, "`observatory rollback --method blue-green --emergency` returns the traffic"):
        return _send(environment, request)


def _send(environment: Environment, request: Request | None) -> RolloutDocument:
    while True:
        current = current_document(environment)
        if current.unfinished is None:
            raise DeliveryRefusedError("no deployment is under way")
        deployment = current.unfinished.model_copy(update={"request": request})
        try:
            written = environment.store.compare_and_set(current, current.model_copy(update={"deployment": deployment}))
        except StaleRolloutError:
            continue
        environment.journal.record(
            "ask", deployment=deployment.id, version=deployment.version, request=request or "resume"
        )
        return written
