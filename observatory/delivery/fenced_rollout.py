"""The rollout document as one deployment reads and changes it, protected by its fencing number.

A deployment or rollback that starts or takes over raises the document's fencing number. Every later read and write
compares it: a deployment that was taken over finds a newer number, and changes nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from observatory.delivery.convergence import converge, current_document
from observatory.delivery.environment import Environment
from observatory.delivery.errors import DeliveryRefusedError, StepFailedError, TakenOverError
from observatory.documents.rollout import Deployment, Request, RolloutDocument, RolloutError, StaleRolloutError
from observatory.errors import ObservatoryError
from observatory.settings import FleetName


class _ReplacedError(ObservatoryError):
    """A request was replaced by another one before it was removed."""


class FencedRollout:
    """The rollout document of a deployment under way.

    Attributes:
        environment: that the deployment works with.
        document: as it was last read or written.
        was_ill: whether the version could not be judged before its traffic, because the live one failed, too.
    """

    def __init__(self, environment: Environment, document: RolloutDocument) -> None:
        self.environment, self.document, self.was_ill = environment, document, False
        self._fencing, self._lock = document.fencing, environment.lock

    @classmethod
    def take_over(cls, environment: Environment, current: RolloutDocument) -> FencedRollout:
        """Take over the deployment that `current` has, whether or not another process runs it.

        Raises:
            DeliveryRefusedError: the document changed concurrently; nothing changed.
        """
        return cls.start(environment, current, current)

    @classmethod
    def start(cls, environment: Environment, current: RolloutDocument, changed: RolloutDocument) -> FencedRollout:
        """Replace `current` by `changed` under the next fencing number.

        Raises:
            DeliveryRefusedError: the document changed concurrently; nothing changed.
        """
        fenced = changed.model_copy(update={"fencing": current.fencing + 1})
        try:
            return cls(environment, environment.store.compare_and_set(current, fenced))
        except StaleRolloutError as error:
            raise DeliveryRefusedError(
                f"the rollout document changed concurrently ({error}); run the command again"
            ) from error

    @property
    def deployment(self) -> Deployment:
        """The deployment under way."""
        return _deployment_of(self.document)

    def read(self) -> RolloutDocument:
        """Check the deployment lock, read the document again, and return it.

        Raises:
            LockLostError: another process holds the deployment lock.
            TakenOverError: the document has another fencing number.
            RolloutError: the document is missing, or cannot be read.
        """
        if self._lock:
            self._lock.check(self.record)
        self.document = self._checked(self._current())
        return self.document

    def check_request(self) -> Request | None:
        """Read the document, and return an operator's request after acknowledging it in the document.

        Raises:
            StepFailedError: it is to abort the deployment.
            LockLostError, TakenOverError: as `read`.
        """
        unless_aborted(self.read())
        request, asked = self.deployment.request, self.deployment.asked
        if self.deployment.heard < asked:
            with suppress(RolloutError):  # such as on a full disk: the request is followed without an answer
                self.update(unless_aborted, heard=asked)
        return request

    def complete_request(self, request: Request, **deployment: Any) -> bool:
        """Remove a request that was followed and change fields of the deployment, in one write.

        Returns:
            False where another request has replaced it: then nothing changed.

        Raises:
            StepFailedError: an operator has requested to abort the deployment.
            LockLostError, TakenOverError: as `read`.
        """

        def unreplaced(document: RolloutDocument) -> RolloutDocument:
            if _deployment_of(unless_aborted(document)).request != request:
                raise _ReplacedError(f"another request has replaced {request}")
            return document

        try:
            self.update(unreplaced, request=None, **deployment)
        except _ReplacedError:
            return False
        return True

    def update(self, change: Callable[[RolloutDocument], RolloutDocument], **deployment: Any) -> None:
        """Apply `change` to the document, and `deployment` to the fields of its deployment, in one write.

        A write that loses against a concurrent one without a newer fencing number, such as a control request, is
        repeated on the document as it is then.

        Raises:
            TakenOverError: the document has another fencing number.
        """
        while True:
            current = self.read()
            updated = _deployment_of(current).model_copy(update=deployment)
            try:
                self.document = self.environment.store.compare_and_set(
                    current, change(current).model_copy(update={"deployment": updated})
                )
            except StaleRolloutError:
                continue
            return

    def ignore_lock(self) -> None:
        """Check the deployment lock no more: a rollback needs none."""
        self._lock = None

    def set_weights(self, weights: Mapping[FleetName, int]) -> None:
        """Set the balancer's traffic weights before the document has them, which a rollback writes afterwards.

        A document that cannot be read does not prevent it.

        Raises:
            TakenOverError: the document has another fencing number; the weights are unchanged.
            BalancerError: the balancer did not accept them.
        """
        with self.environment.store.exclusive():
            try:
                self.read()
            except RolloutError as error:
                self.record("unreadable", reason=str(error))
            self.environment.balancer.set_weights(weights)

    def update_deployment(self, **deployment: Any) -> None:
        """Change fields of the deployment; raises as `update`."""
        self.update(lambda document: document, **deployment)

    def converge(self) -> None:
        """Apply the document to the balancer.

        Raises:
            TakenOverError: the applied document has another fencing number.
            BalancerError: the balancer did not accept it.
        """
        self.document = self._checked(converge(self.environment))

    def record(self, event: str, **details: Any) -> None:
        """Write an entry of this deployment to the journal, with its step, its weights and its control request."""
        deployment = self.deployment
        common: dict[str, Any] = {"deployment": deployment.id, "version": deployment.version}
        if deployment.weights and deployment.step >= 0:
            common |= {"step": deployment.step + 1, "steps": len(deployment.weights), "weights": self.document.weights}
        if deployment.request:
            common["request"] = deployment.request
        self.environment.journal.record(event, **{**common, **details})

    def _current(self) -> RolloutDocument:
        """Return the document as it is now. A deployment under way has one: a missing one is as a damaged one."""
        try:
            return current_document(self.environment)
        except DeliveryRefusedError as error:
            raise RolloutError("the rollout document is missing") from error

    def _checked(self, document: RolloutDocument) -> RolloutDocument:
        if document.fencing != self._fencing:
            raise TakenOverError(
                f"taken over: the rollout document has fencing number {document.fencing}, this deployment has "
                f"{self._fencing}; `observatory status` shows the deployment that took over"
            )
        return document


def unless_aborted(document: RolloutDocument) -> RolloutDocument:
    """Return the document; raises StepFailedError where an operator has requested to abort its deployment."""
    if _deployment_of(document).request == "abort":
        raise StepFailedError("aborted by `observatory rollout abort`")
    return document


def _deployment_of(document: RolloutDocument) -> Deployment:
    assert document.deployment is not None  # noqa: S101 - only a newer fencing number could have removed it
    return document.deployment
