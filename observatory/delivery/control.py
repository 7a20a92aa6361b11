"""Control requests to a running deployment: pause, resume, promote, abort."""

from __future__ import annotations

from observatory.delivery.convergence import current_document, naming_traffic
from observatory.delivery.environment import Environment
from observatory.delivery.errors import DeliveryRefusedError
from observatory.documents.rollout import Deployment, Request, RolloutDocument, StaleRolloutError


def send_control_request(environment: Environment, request: Request | None) -> RolloutDocument:
    """Write a control request to the rollout document, where the deployment reads it; None resumes a paused one.

    Raises:
        DeliveryRefusedError: no deployment is under way, or it is to be rolled back, which no request changes.
        RolloutError: the document cannot be read or written; the message has the traffic weights.
    """
    with naming_traffic(environment, "`observatory rollback --method blue-green --emergency` returns the traffic"):
        return _send(environment, request)


def _send(environment: Environment, request: Request | None) -> RolloutDocument:
    while True:
        current = current_document(environment)
        if current.unfinished is None:
            raise DeliveryRefusedError("no deployment is under way")
        _check_changeable(current.unfinished, request)
        deployment = current.unfinished.model_copy(update={"request": request, "asked": current.unfinished.asked + 1})
        try:
            written = environment.store.compare_and_set(current, current.model_copy(update={"deployment": deployment}))
        except StaleRolloutError:
            continue
        environment.journal.record(
            "ask", deployment=deployment.id, version=deployment.version, request=request or "resume"
        )
        return written


def acknowledges(deployment: Deployment, request: Request | None, *, asked: int) -> bool:
    """Return whether the command of a deployment follows its request number `asked`.

    The rollout document says so, which every machine reads, and no clock: the command wrote that this request was the
    newest when it last read them, or the deployment is what was requested.
    """
    if request == "abort":
        return deployment.status in ("rolling-back", "rolled-back")
    return deployment.heard == asked or (request == "promote" and deployment.status == "promoted")


def is_replaced(deployment: Deployment, *, asked: int) -> bool:
    """Return whether the command of a deployment has read a later request than number `asked`."""
    return deployment.heard > asked


def _check_changeable(deployment: Deployment, request: Request | None) -> None:
    """Check that a request changes nothing that another operator has decided: an abort and a rollback stand."""
    if deployment.status == "rolling-back":
        state = "is being rolled back"
    elif deployment.request == "abort" and request != "abort":
        state = "is to be aborted, which its command does at its next evaluation"
    else:
        return
    raise DeliveryRefusedError(
        f"the deployment of {deployment.version} {state}. If no command runs, `observatory rollback --method "
        "blue-green` completes it"
    )
