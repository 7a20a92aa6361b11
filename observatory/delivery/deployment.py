"""One deployment of a version, by blue-green or canary: install, verify, shift step by step under gates, promote.

A rolling update, which moves no traffic between fleets but instances inside one, is `observatory.delivery.rolling`.
Any trouble rolls back. The rollout document is written before the balancer is told, and what the balancer is told is
always the newest document (`converge`); so whoever dies in between, and whoever takes over, ends with the traffic where
the document has it. Every write carries the deployment's fencing number: one that was taken over finds
that out at its next write and touches nothing more.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping
from typing import Literal

from observatory.delivery.environment import (
    BalancerError,
    Environment,
    HostsError,
    Instances,
    MetricsUnavailableError,
    Sample,
)
from observatory.delivery.errors import (
    DeliveryRefusedError,
    RollbackFailedError,
    RolledBackError,
    StepFailedError,
    TakenOverError,
    TrialFailedError,
)
from observatory.delivery.gates import Verdict, judge
from observatory.delivery.request import DeploymentRequest
from observatory.documents.rollout import (
    TOTAL_WEIGHT,
    Deployment,
    Rolling,
    RolloutDocument,
    StaleRolloutError,
    other,
)
from observatory.settings import FleetName

SETTLE_ATTEMPTS = 5  # of telling the balancer, before a rollback is given up as failed
SETTLE_PAUSE_S = 1.0


def deploy(environment: Environment, request: DeploymentRequest) -> RolloutDocument:
    """Bring a version, or go on with the deployment of it that a killed command left; return the document at the end.

    Raises:
        DeliveryRefusedError: not begun, nothing changed.
        TrialFailedError: the version failed before it was begun, nothing changed.
        RolledBackError: a gate, the fleet, an alert or a person said no; the old fleet serves.
        RollbackFailedError: so, and the way back failed too.
        TakenOverError: somebody else's rollback or deployment took over.
        KeyboardInterrupt: interrupted, and rolled back.
    """
    current = current_document(environment)
    if _runs_already(current, request):
        return current
    _check_unfinished(current, request)
    return run_of(
        environment, *(take_over(environment, current) if current.unfinished else _begin(environment, current, request))
    ).run()


def preview_deployment(environment: Environment, request: DeploymentRequest) -> Deployment | None:
    """Return the deployment that `deploy` would begin or go on with, None where the version serves; change nothing.

    Raises:
        DeliveryRefusedError: as `deploy` would.
    """
    current = current_document(environment)
    if _runs_already(current, request):
        return None
    _check_unfinished(current, request)
    return current.unfinished or _wanted(environment, current, request)


def _check_unfinished(current: RolloutDocument, request: DeploymentRequest) -> None:
    """Refuse another version than that of the deployment under way."""
    unfinished = current.unfinished
    if unfinished and (unfinished.version, unfinished.sha256) != (request.version, request.sha256):
        raise DeliveryRefusedError(
            f"the deployment of {unfinished.version} to {unfinished.target} is {unfinished.status}: go on with it by "
            f"`observatory deploy application --version {unfinished.version} --strategy {unfinished.strategy}`, or "
            "undo it by `observatory rollback --method blue-green`"
        )


def converge(environment: Environment) -> RolloutDocument:
    """Tell the balancer what the document says, read it back, and return that document.

    The document is read and the balancer told while nobody else tells it, where the store can keep others out. Where it
    cannot, one who was taken over in between may tell the balancer last: so the document is read again after, until
    the last that was told is what it says.

    Raises:
        BalancerError: it cannot be told, or does not keep what it was told.
    """
    with environment.store.exclusive():
        current = current_document(environment)
        while True:
            environment.balancer.set_weights(current.weights)
            live, out = dict(environment.balancer.weights()), _set_out(environment, current)
            told, current = current, current_document(environment)
            if (current.weights, current.draining) == (told.weights, told.draining):
                break
    if live != current.weights:
        raise BalancerError(f"the balancer was told {_shown(current.weights)} and divides the traffic {_shown(live)}")
    if out != _sets(current.draining):
        raise BalancerError(
            f"the balancer was told to leave out {_named(current.draining)} and leaves out {_named(out)}"
        )
    return current


def _set_out(environment: Environment, current: RolloutDocument) -> dict[FleetName, frozenset[str]]:
    """Tell the balancer which instances get nothing, and return which do not."""
    if environment.instances is None:
        return {}
    environment.instances.set_draining(current.draining)
    return _sets(environment.instances.draining())


def current_document(environment: Environment) -> RolloutDocument:
    """Return the document as it is now.

    Raises:
        DeliveryRefusedError: there is none yet.
    """
    document = environment.store.read()
    if document is None:
        raise DeliveryRefusedError("nothing is deployed on this stack yet: run `observatory up` first")
    return document


def _runs_already(current: RolloutDocument, request: DeploymentRequest) -> bool:
    if current.unfinished:
        return False
    if request.strategy == "rolling":
        return current.fleet(request.target or current.active_fleet).sha256 == request.sha256
    return current.fleet(current.active_fleet).sha256 == request.sha256 and request.target is None


def _wanted(environment: Environment, current: RolloutDocument, request: DeploymentRequest) -> Deployment:
    """Return the deployment to begin, after all checks that change nothing."""
    rolling = request.strategy == "rolling"
    source, target = _fleets_of(current, request)
    if rolling:
        _check_batch(environment, target, request.batch_size)
    _check_drift(environment, current, accept=request.accept_drift)
    if not (request.skip_tests or environment.trial):
        raise DeliveryRefusedError(
            f"{request.version} cannot be tried apart from the fleets on this platform; --skip-tests brings it without"
        )
    return Deployment(
        id=uuid.uuid4().hex[:12],
        version=request.version,
        sha256=request.sha256,
        strategy=request.strategy,
        source=source,
        target=target,
        weights=() if rolling else request.weights,
        batch_size=request.batch_size if rolling else None,
        gated=request.gated,
        bake_s=request.bake_s,
        health_check_s=request.health_check_s,
        actor=request.actor,
        approved_by=request.approved_by,
        started=environment.clock.now(),
        before=current.fleet(target),
    )


def _begin(
    environment: Environment, current: RolloutDocument, request: DeploymentRequest
) -> tuple[RolloutDocument, int]:
    wanted = _wanted(environment, current, request)
    tests = _test(environment, request, wanted.target, wanted.id)
    deployment = wanted.model_copy(update={"tests": tests})
    target, fencing = deployment.target, current.fencing + 1
    if request.strategy == "rolling":
        begun = current.with_fleet(target, rolling=Rolling(version=request.version, sha256=request.sha256))
    else:
        begun = current.with_weight(target, 0).with_fleet(target, version=request.version, sha256=request.sha256)
    changed = begun.model_copy(update={"deployment": deployment, "fencing": fencing})
    written = _first_write(environment, current, changed)
    told = {"version", "sha256", "strategy", "source", "target", "weights", "batch_size", "bake_s", "approved_by"}
    environment.journal.record(
        "start", deployment=deployment.id, **deployment.model_dump(include=told, exclude_none=True)
    )
    return written, fencing


def _test(
    environment: Environment, request: DeploymentRequest, target: FleetName, id_: str
) -> Literal["passed", "skipped"]:
    """Try the version apart from the fleets, and say so in the journal, also where it is not done."""
    if request.skip_tests:
        environment.journal.record("tests-skipped", deployment=id_, version=request.version)
        return "skipped"
    assert environment.trial is not None  # noqa: S101 - checked before
    try:
        environment.trial.test(target, request.version)
    except HostsError as error:
        environment.journal.record("tests-failed", deployment=id_, version=request.version, reason=str(error))
        raise TrialFailedError(
            f"{request.version} failed before it was deployed, nothing was changed: {error}"
        ) from error
    environment.journal.record("tests-passed", deployment=id_, version=request.version)
    return "passed"


def _fleets_of(current: RolloutDocument, request: DeploymentRequest) -> tuple[FleetName, FleetName]:
    """Return the fleet that serves again after a rollback, and the one that gets the version."""
    active = current.active_fleet
    if request.strategy == "rolling":
        return request.target or active, request.target or active
    if request.target == active:
        raise DeliveryRefusedError(f"{active} serves: deploy to {other(active)}, the idle fleet")
    return active, other(active)


def _check_batch(environment: Environment, fleet: FleetName, batch: int) -> None:
    """Refuse a rolling update that would leave no instance to serve."""
    if environment.instances is None:
        raise DeliveryRefusedError("instances are not updated one by one on this platform: use --strategy blue-green")
    size = len(environment.instances.names(fleet))
    if size == 1:
        raise DeliveryRefusedError(
            f"no idle capacity: a rolling update takes instances out while the others serve, and {fleet} has one. "
            "Raise fleets.size and run `observatory up`, or use --strategy blue-green"
        )
    if not 1 <= batch < size:
        raise DeliveryRefusedError(f"a batch of {batch}: between 1 and {size - 1} of {fleet}'s {size} instances")
    if not environment.hosts.healthy(fleet):
        raise DeliveryRefusedError(
            f"{fleet} has instances that are not ready, which its others must serve for already: `observatory status` "
            "shows them, `observatory up` mends them"
        )
    check_in_step(environment.instances)


def check_in_step(instances: Instances) -> None:
    """Refuse to touch instances where others would be changed with them: half way there would be no way on."""
    try:
        instances.check()
    except HostsError as error:
        raise DeliveryRefusedError(str(error)) from error


def take_over(environment: Environment, current: RolloutDocument) -> tuple[RolloutDocument, int]:
    """Take the right to write over, and return the document with the new fencing number."""
    fencing = current.fencing + 1
    return _first_write(environment, current, current.model_copy(update={"fencing": fencing})), fencing


def _first_write(environment: Environment, current: RolloutDocument, changed: RolloutDocument) -> RolloutDocument:
    try:
        return environment.store.compare_and_set(current, changed)
    except StaleRolloutError as error:
        raise DeliveryRefusedError(f"somebody else was faster: {error}") from error


def _check_drift(environment: Environment, current: RolloutDocument, *, accept: bool) -> None:
    live, out = (
        dict(environment.balancer.weights()),
        _sets(environment.instances.draining() if environment.instances else current.draining),
    )
    remedy = "find out who changed it; --accept-drift goes on from the document"
    if live != current.weights and not accept:
        raise DeliveryRefusedError(
            f"the balancer divides the traffic {_shown(live)}, the rollout document says {_shown(current.weights)}: "
            f"{remedy}"
        )
    if out != _sets(current.draining) and not accept:
        raise DeliveryRefusedError(
            f"the balancer leaves out {_named(out)}, the rollout document {_named(current.draining)}: {remedy}"
        )


def _shown(weights: Mapping[FleetName, int]) -> str:
    return ", ".join(f"{fleet} {weight} %" for fleet, weight in sorted(weights.items()))


def _sets(out: Mapping[FleetName, Collection[str]]) -> dict[FleetName, frozenset[str]]:
    return {fleet: frozenset(names) for fleet, names in out.items() if names}


def _named(out: Mapping[FleetName, Collection[str]]) -> str:
    return ", ".join(sorted(name for names in out.values() for name in names)) or "nothing"


def run_of(environment: Environment, document: RolloutDocument, fencing: int) -> Run:
    """Return the run of the document's deployment."""
    from observatory.delivery.rolling import RollingRun  # noqa: PLC0415 - built on this module

    rolling = document.deployment is not None and document.deployment.strategy == "rolling"
    return (RollingRun if rolling else Run)(environment, document, fencing)


class Run:
    """A deployment under way, begun or taken over; `fencing` is its right to write."""

    def __init__(self, environment: Environment, document: RolloutDocument, fencing: int) -> None:
        self._environment, self._document, self._fencing = environment, document, fencing

    @property
    def _deployment(self) -> Deployment:
        deployment = self._document.deployment
        assert deployment is not None  # noqa: S101 - a run begins with one and never removes it
        return deployment

    def run(self) -> RolloutDocument:
        """Go on from where the document says, to the end or back, with the moving fleet's alerts held back."""
        with self._environment.silences.moving(self._deployment.id, self._deployment.target):
            return self._run()

    def _run(self) -> RolloutDocument:
        if self._deployment.status == "rolling-back":
            self.roll_back(self._deployment.reason or "an earlier rollback was interrupted")
            raise RolledBackError(f"rolled back: {self._deployment.reason}")
        try:
            return self._forward()
        except TakenOverError:
            raise
        except KeyboardInterrupt:
            self.roll_back("interrupted")
            raise
        except Exception as trouble:
            self.roll_back(str(trouble))
            self._restore_target()
            raise RolledBackError(f"rolled back: {trouble}") from trouble

    def _forward(self) -> RolloutDocument:
        environment, target = self._environment, self._deployment.target
        if self._deployment.status == "preparing":
            converge(environment)  # where drift was accepted, the target may have traffic
            self._record("install", fleet=target)
            environment.hosts.install(target)
            self._record("verify", fleet=target)
            environment.hosts.verify(target)
            self._change(status="shifting", exercised=environment.clock.now())
        for index in range(max(self._deployment.step, 0), len(self._deployment.weights)):
            self._shift(index)
            self._bake()
        self._change(status="promoted", request=None)
        self._record("promoted", fleet=target)
        return self._document

    def _shift(self, index: int) -> None:
        weight = self._deployment.weights[index]
        self._must_be_healthy()
        self._write(lambda current: current.with_weight(self._deployment.target, weight), step=index)
        self._document = converge(self._environment)
        self._record("shift", weights=self._document.weights, step=index)

    def _must_be_healthy(self) -> None:
        clock, seconds = self._environment.clock, self._deployment.health_check_s
        deadline = clock.now() + seconds
        while not self._environment.hosts.healthy(self._deployment.target):
            if clock.now() >= deadline:
                raise StepFailedError(
                    f"{self._deployment.target} is not ready to take more traffic, and was not within {seconds:g} s"
                )
            clock.sleep(1.0)

    def _bake(self) -> None:
        """Watch the step until it has baked, somebody promotes it, or it fails."""
        if not self._deployment.gated:
            return self._must_be_healthy()
        clock, limits = self._environment.clock, self._environment.limits
        baked, bad, unjudged = 0.0, 0, 0.0
        looked = clock.now()
        while True:
            clock.sleep(max(0.0, looked + limits.interval_s - clock.now()))
            looked, passed_s = clock.now(), clock.now() - looked
            request = self._request()
            verdict = self._evaluate()
            bad = bad + 1 if verdict.result == "failed" else 0
            if bad >= limits.failures:
                raise StepFailedError("; ".join(verdict.reasons))
            if request == "promote" and verdict.result != "failed":
                return self._change(request=None)
            if verdict.result == "passed" and request != "pause":
                baked, unjudged = baked + passed_s, 0.0
            elif verdict.result == "unknown":
                unjudged += passed_s
            if unjudged > limits.deadline_s:
                raise StepFailedError(f"no verdict for {unjudged:.0f} s: {'; '.join(verdict.reasons)}")
            if baked >= self._deployment.bake_s and verdict.result == "passed" and request != "pause":
                return None

    def _request(self) -> str | None:
        """Return what was asked at another terminal; an abort is a reason to roll back."""
        self._document = self._mine(current_document(self._environment))
        if self._deployment.request == "abort":
            raise StepFailedError("aborted on request")
        return self._deployment.request

    def _evaluate(self) -> Verdict:
        limits = self._environment.limits
        new, old = self._samples()
        if new and not new.database_down and new.requests < limits.minimum_requests:
            self._environment.metrics.probe(self._deployment.target, self._probes())
        verdict = judge(new, old, limits)
        self._record("gate", verdict=verdict.result, reasons=verdict.reasons, new=new, old=old)
        return verdict

    def _samples(self) -> tuple[Sample | None, Sample | None]:
        """Return what is known of the new version, and of the old one beside it."""
        return self._sample(self._deployment.target), self._sample(other(self._deployment.target))

    def _probes(self) -> int:
        """Return how many synthetic requests to the target let it be judged."""
        return self._environment.limits.minimum_requests

    def _sample(self, fleet: FleetName, instances: Collection[str] | None = None) -> Sample | None:
        try:
            return self._environment.metrics.sample(fleet, instances, since=self._deployment.exercised)
        except MetricsUnavailableError as error:
            self._record("no-metrics", fleet=fleet, reason=str(error))
            return None

    def roll_back(self, reason: str) -> RolloutDocument:
        """Give the traffic back to the source, and see that it serves; the document has the target as it was before."""
        source, target, before = self._deployment.source, self._deployment.target, self._deployment.before

        def back(current: RolloutDocument) -> RolloutDocument:
            old = current.with_fleet(target, version=before.version, sha256=before.sha256)
            return old.with_weight(source, TOTAL_WEIGHT)

        self._write(back, status="rolling-back", reason=reason)
        self._record("rollback", reason=reason)
        self._settle()
        self._change(status="rolled-back", request=None)
        self._record("rolled-back", reason=reason, weights=self._document.weights)
        self._must_serve_again(f"all traffic is back on {source} ({reason})")
        return self._document

    def _must_serve_again(self, done: str) -> None:
        if ill := self._ill(self._deployment.source):
            self._record("escalate", reason=f"after the rollback {ill}")
            raise RollbackFailedError(f"{done}, but {ill}: look at `observatory status`")

    def _ill(self, fleet: FleetName) -> str:
        """Return in words what is known against a fleet's health; nothing when all is well."""
        try:
            return "" if self._environment.hosts.healthy(fleet) else f"{fleet} is not healthy"
        except HostsError as error:
            return f"whether {fleet} is healthy is not known: {error}"

    def _restore_target(self) -> None:
        """Bring the target back to what it ran before; without traffic it may also wait for the next `up`."""
        try:
            self._environment.hosts.install(self._deployment.target)
        except HostsError as error:
            self._record("not-restored", fleet=self._deployment.target, reason=str(error))

    def _settle(self) -> None:
        """Tell the balancer; giving up here leaves users on a fleet that was found bad."""

        def tell() -> None:
            self._document = self._mine(converge(self._environment))

        self._insist(
            tell,
            "the balancer cannot be told to go back: {}. The document says it should: `observatory up` or `observatory "
            "rollback --emergency` tells it again",
            BalancerError,
        )

    def _insist(self, work: Callable[[], None], hopeless: str, *errors: type[Exception]) -> None:
        """Do what a rollback cannot do without, again if need be; `hopeless` says with the error what is left."""
        for attempt in range(1, SETTLE_ATTEMPTS + 1):
            try:
                return work()
            except errors as error:
                if attempt == SETTLE_ATTEMPTS:
                    self._record("escalate", reason=str(error))
                    raise RollbackFailedError(hopeless.format(error)) from error
                self._environment.clock.sleep(SETTLE_PAUSE_S)
        return None

    def _change(self, **changes: object) -> None:
        self._write(lambda current: current, **changes)

    def _write(self, change: Callable[[RolloutDocument], RolloutDocument], **changes: object) -> None:
        """Change the document and its deployment, as long as they are this run's."""
        while True:
            current = self._mine(current_document(self._environment))
            deployment = self._deployment_of(current).model_copy(update=changes)
            changed = change(current).model_copy(update={"deployment": deployment, "fencing": self._fencing})
            try:
                self._document = self._environment.store.compare_and_set(current, changed)
            except StaleRolloutError:
                continue
            return

    def _mine(self, current: RolloutDocument) -> RolloutDocument:
        if current.fencing != self._fencing:
            raise TakenOverError(
                f"taken over: the rollout document carries fencing number {current.fencing}, this deployment's is "
                f"{self._fencing}"
            )
        return current

    def _deployment_of(self, current: RolloutDocument) -> Deployment:
        assert current.deployment is not None  # noqa: S101 - only a newer fencing number could have removed it
        return current.deployment

    def _record(self, event: str, **details: object) -> None:
        known = {"deployment": self._deployment.id, "version": self._deployment.version}
        self._environment.journal.record(event, **{**known, **details})
