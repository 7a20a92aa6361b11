"""The rollout document as one deployment reads and changes it, protected by its fencing number.

A deployment or rollback that starts or takes over raises the document's fencing number. Every later read and write
compares it: a deployment that was taken over finds a newer number, and changes nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from observatory.delivery.convergence import converge, current_document
from observatory.delivery.environment import Environment
from observatory.delivery.errors import DeliveryRefusedError, StepFailedError, TakenOverError
from observatory.documents.rollout import Deployment, Request, RolloutDocument, RolloutError, StaleRolloutError
from observatory.settings import FleetName


class FencedRollout:
    """The rollout document of a deployment under way.

    Attributes:
        environment: that the deployment works with.
        document: as it was last read or written.
    """

    def __init__(self, environment: Environment, document: RolloutDocument) -> None:
        self.environment, self.document = environment, document
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
        """
        if self._lock:
            self._lock.check(self.record)
        self.document = self._checked(current_document(self.environment))
        return self.document

    def check_request(self) -> Request | None:
        """Read the document, and return an operator's request.

        Raises:
            StepFailedError: it is to abort the deployment.
            LockLostError, TakenOverError: as `read`.
        """
        self.read()
        if self.deployment.request == "abort":
            raise StepFailedError("aborted by `observatory rollout abort`")
        return self.deployment.request

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

    def _checked(self, document: RolloutDocument) -> RolloutDocument:
        if document.fencing != self._fencing:
            raise TakenOverError(
                f"taken over: the rollout document has fencing number {document.fencing}, this deployment has "
                f"{self._fencing}; `observatory status` shows the deployment that took over"
            )
        return document


def _deployment_of(document: RolloutDocument) -> Deployment:
    assert document.deployment is not None  # noqa: S101 - only a newer fencing number could have removed it
    return document.deployment
