"""Makes the balancer match the rollout document, and finds where it does not."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from observatory.delivery.environment import BalancerError, Environment
from observatory.delivery.errors import DeliveryRefusedError
from observatory.documents.rollout import RolloutDocument, RolloutError
from observatory.settings import FleetName


@dataclass(frozen=True, kw_only=True)
class _Traffic:
    """Traffic weights, and the instances of each fleet that get no new requests."""

    weights: Mapping[FleetName, int]
    draining: Mapping[FleetName, frozenset[str]]


def current_document(environment: Environment) -> RolloutDocument:
    """Return the rollout document as it is now.

    Raises:
        DeliveryRefusedError: the stack has none yet.
    """
    document = environment.store.read()
    if problem := environment.store.problem:
        environment.journal.record("recovered", reason=problem)
    if document is None:
        raise DeliveryRefusedError(
            "the stack has no rollout document: run `observatory up` first; one that was deleted with all copies and "
            "versions must be restored from a backup"
        )
    return document


def converge(environment: Environment) -> RolloutDocument:
    """Apply the rollout document to the balancer, read the balancer back, and return the document.

    Where the store has a lock, one process at a time does this. Where it has none, a process that was taken over may
    write to the balancer last: so the document is read again afterwards, until the applied one is the current one.

    Raises:
        BalancerError: the balancer cannot be reached, or its traffic differs from what was applied.
    """
    with environment.store.exclusive():
        document = current_document(environment)
        while True:
            live = _apply(environment, document)
            applied, document = document, current_document(environment)
            if _expected(environment, document) == _expected(environment, applied):
                break
    if differences := _differences(live, _expected(environment, document)):
        raise BalancerError(f"{differences}; `observatory status` shows whether the balancer runs")
    return document


@contextmanager
def naming_traffic(environment: Environment, remedy: str) -> Iterator[None]:
    """Add the traffic weights and a remedy to the error of a rollout document that cannot be read or written."""
    try:
        yield
    except RolloutError as error:
        raise RolloutError(f"{error}. {traffic_shares(environment)}, unchanged: {remedy}") from error


def traffic_shares(environment: Environment) -> str:
    """Return which fleet has which share of the traffic now, as text; never raises BalancerError."""
    try:
        weights = environment.balancer.weights()
    except BalancerError as error:
        return f"the traffic weights are unknown ({error})"
    return " and ".join(f"{fleet} has {weight} %" for fleet, weight in sorted(weights.items())) + " of the traffic"


def check_drift(environment: Environment, document: RolloutDocument, *, accept: bool) -> None:
    """Check that the balancer can be read and matches the rollout document, unless drift is accepted.

    Raises:
        DeliveryRefusedError: the balancer differs.
        BalancerError: it cannot be read.
    """
    differences = _differences(_live(environment, document), _expected(environment, document))
    if differences and not accept:
        raise DeliveryRefusedError(
            f"the balancer differs from the rollout document: {differences}. Find out what changed it, or deploy with "
            "--accept-drift to apply the document"
        )


def _apply(environment: Environment, document: RolloutDocument) -> _Traffic:
    environment.balancer.set_weights(document.weights)
    weights, draining = dict(environment.balancer.weights()), _draining(environment, document)
    if environment.instances is None:
        return _Traffic(weights=weights, draining=_sets(draining))
    environment.instances.set_draining(draining)
    return _Traffic(weights=weights, draining=_sets(environment.instances.draining()))


def _live(environment: Environment, document: RolloutDocument) -> _Traffic:
    weights = dict(environment.balancer.weights())
    draining = environment.instances.draining() if environment.instances else document.draining
    return _Traffic(weights=weights, draining=_sets(draining))


def _expected(environment: Environment, document: RolloutDocument) -> _Traffic:
    return _Traffic(weights=document.weights, draining=_sets(_draining(environment, document)))


def _draining(environment: Environment, document: RolloutDocument) -> dict[FleetName, tuple[str, ...]]:
    """Return the draining and stopped instances that exist: a fleet may have been made smaller."""
    if environment.instances is None:
        return document.draining
    names = {fleet: environment.instances.names(fleet) for fleet in document.draining}
    return {fleet: tuple(each for each in out if each in names[fleet]) for fleet, out in document.draining.items()}


def _differences(live: _Traffic, expected: _Traffic) -> str:
    differences = []
    if live.weights != expected.weights:
        differences.append(
            f"traffic weights are {_percentages(live.weights)}, expected {_percentages(expected.weights)}"
        )
    if live.draining != expected.draining:
        differences.append(f"draining instances are {_names(live.draining)}, expected {_names(expected.draining)}")
    return "; ".join(differences)


def _sets(instances: Mapping[FleetName, Collection[str]]) -> dict[FleetName, frozenset[str]]:
    return {fleet: frozenset(names) for fleet, names in instances.items() if names}


def _percentages(weights: Mapping[FleetName, int]) -> str:
    return ", ".join(f"{fleet} {weight} %" for fleet, weight in sorted(weights.items()))


def _names(instances: Mapping[FleetName, Collection[str]]) -> str:
    return ", ".join(sorted(name for names in instances.values() for name in names)) or "none"
