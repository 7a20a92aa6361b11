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
from dataclasses import dataclass, field
from typing import Literal

from observatory.delivery.environment import (
    Balancer,
    BalancerError,
    Clock,
    Hosts,
    HostsError,
    Instances,
    Journal,
    Metrics,
    MetricsUnavailableError,
    RolloutStore,
    Sample,
    Silences,
    Trial,
)
from observatory.delivery.gates import Verdict, judge
from observatory.documents.rollout import (
    HEALTH_CHECK_S,
    TOTAL_WEIGHT,
    Deployment,
    Rolling,
    RolloutDocument,
    StaleRolloutError,
    Strategy,
    other,
)
from observatory.errors import REFUSED, ObservatoryError
from observatory.settings import FleetName
from observatory.settings.gates import Limits

SETTLE_ATTEMPTS = 5  # of telling the balancer, before a rollback is given up as failed
SETTLE_PAUSE_S = 1.0


class DeliveryRefusedError(ObservatoryError):
    """The deployment was not begun, and nothing was changed; the message says what stands in the way."""

    exit_code = REFUSED


class TrialFailedError(ObservatoryError):
    """The version failed a test before the deployment, and nothing was changed; the message says which."""


class TakenOverError(ObservatoryError):
    """Another deployment or rollback took over; this one stopped and touches nothing more."""


class RolledBackError(ObservatoryError):
    """The deployment was rolled back; the message says why. The old version serves."""


class RollbackFailedError(ObservatoryError):
    """The traffic could not be brought back, or the fleet that it came back to is not healthy: somebody must look."""


class StepFailedError(ObservatoryError):
    """A reason to roll back."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is wanted.

    Attributes:
        version: to bring, with its artifact's SHA-256.
        strategy: blue-green moves all traffic at once, canary by steps, rolling the instances of one fleet by turns.
        target: the fleet to use; None for the idle one, of a rolling update for the one that serves.
        weights: percent on the target, a number for each step, growing to 100; of no meaning to a rolling update.
        batch_size: instances that a rolling update takes at a time.
        gated: whether each step is watched and judged; a way back to a version is not.
        bake_s: seconds that each step is watched.
        actor: who wants it.
        approved_by: who has approved the version, where somebody has.
        accept_drift: go on although the balancer divides the traffic in another way than the document says.
        skip_tests: bring the version without having tried it apart from the fleets before.
        health_check_s: seconds that a fleet gets to be ready before it takes more traffic.
    """

    version: str
    sha256: str
    strategy: Strategy
    target: FleetName | None = None
    weights: tuple[int, ...] = (TOTAL_WEIGHT,)
    batch_size: int = 1
    gated: bool = True
    bake_s: float
    actor: str
    approved_by: str | None = None
    accept_drift: bool = False
    skip_tests: bool = False
    health_check_s: float = HEALTH_CHECK_S


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything that a delivery works with.

    `trial` is None where versions cannot be tried apart from the fleets, `instances` where those cannot be updated one
    by one.
    """

    store: RolloutStore
    balancer: Balancer
    hosts: Hosts
    metrics: Metrics
    silences: Silences
    clock: Clock
    journal: Journal
    trial: Trial | None = None
    instances: Instances | None = None
    limits: Limits = field(default_factory=Limits)


def canary_weights(first: int, steps: tuple[int, ...]) -> tuple[int, ...]:
    """Return the weights of a canary that starts at `first` percent and goes on by the steps above it, to all.

    Raises:
        DeliveryRefusedError: no percentage.
    """
    if not 1 <= first < TOTAL_WEIGHT:
        raise DeliveryRefusedError(f"a canary of {first} %: between 1 and {TOTAL_WEIGHT - 1} is possible")
    return (first, *sorted({step for step in steps if first < step < TOTAL_WEIGHT}), TOTAL_WEIGHT)


def deploy(world: World, order: Order) -> RolloutDocument:
    """Bring a version, or go on with the deployment of it that a killed command left; return the document at the end.

    Raises:
        DeliveryRefusedError: not begun, nothing changed.
        TrialFailedError: the version failed before it was begun, nothing changed.
        RolledBackError: a gate, the fleet, an alert or a person said no; the old fleet serves.
        RollbackFailedError: so, and the way back failed too.
        TakenOverError: somebody else's rollback or deployment took over.
        KeyboardInterrupt: interrupted, and rolled back.
    """
    standing = standing_of(world)
    if _runs_already(standing, order):
        return standing
    _check_unfinished(standing, order)
    return _run_of(
        world, *(_take_over(world, standing) if standing.unfinished else _begin(world, standing, order))
    ).run()


def plan(world: World, order: Order) -> Deployment | None:
    """Return the deployment that `deploy` would begin or go on with, None where the version serves; change nothing.

    Raises:
        DeliveryRefusedError: as `deploy` would.
    """
    standing = standing_of(world)
    if _runs_already(standing, order):
        return None
    _check_unfinished(standing, order)
    return standing.unfinished or _wanted(world, standing, order)


def _check_unfinished(standing: RolloutDocument, order: Order) -> None:
    """Refuse another version than that of the deployment under way."""
    unfinished = standing.unfinished
    if unfinished and (unfinished.version, unfinished.sha256) != (order.version, order.sha256):
        raise DeliveryRefusedError(
            f"the deployment of {unfinished.version} to {unfinished.target} is {unfinished.status}: go on with it by "
            f"`observatory deploy application --version {unfinished.version} --strategy {unfinished.strategy}`, or "
            "undo it by `observatory rollback --method blue-green`"
        )


def roll_back(world: World, *, actor: str, reason: str) -> RolloutDocument:
    """Undo the last deployment, also while it runs, taking over from it.

    All traffic goes back to the fleet that served before; this asks nothing but the document and the balancer, so that
    it works when all else is down. The instances of a rolling update go back by turns, as they came.

    Raises:
        DeliveryRefusedError: no deployment is known that could be undone.
        RollbackFailedError: the balancer could not be told, an instance could not be brought back, or the fleet that
            serves now is not healthy.
    """
    standing = standing_of(world)
    if standing.deployment and standing.deployment.status == "rolled-back":
        converge(world)
    deployment = _undoable(world, standing)
    run = _run_of(world, *_take_over(world, standing))
    try:
        return run.roll_back(f"{reason} ({actor})")
    finally:
        world.silences.end(deployment.id)


def plan_way_back(world: World) -> tuple[Deployment, bool]:
    """Return the deployment that `roll_back` would undo, and whether the fleet that would serve is healthy.

    Raises:
        DeliveryRefusedError: as `roll_back` would.
    """
    deployment = _undoable(world, standing_of(world))
    return deployment, world.hosts.healthy(deployment.source)


def _undoable(world: World, standing: RolloutDocument) -> Deployment:
    deployment = standing.deployment
    if deployment is None:
        raise DeliveryRefusedError("nothing to roll back: no deployment was made on this stack")
    if deployment.status == "rolled-back":
        raise DeliveryRefusedError(
            f"nothing to roll back: {deployment.source} serves, the deployment of {deployment.version} was rolled back "
            "already"
        )
    if world.instances and deployment.strategy == "rolling" and deployment.status == "promoted":
        _check_in_step(world.instances)
    return deployment


def ask(world: World, request: str | None) -> RolloutDocument:
    """Ask something of the deployment that runs at another terminal: pause, promote, abort; None resumes.

    Raises:
        DeliveryRefusedError: none runs.
    """
    while True:
        standing = standing_of(world)
        if standing.deployment is None or standing.deployment.ended:
            raise DeliveryRefusedError("no deployment is under way")
        asked = standing.deployment.model_copy(update={"request": request})
        try:
            written = world.store.compare_and_set(standing, standing.model_copy(update={"deployment": asked}))
        except StaleRolloutError:
            continue
        world.journal.record("ask", deployment=asked.id, version=asked.version, request=request or "resume")
        return written


def converge(world: World) -> RolloutDocument:
    """Tell the balancer what the document says, read it back, and return that document.

    The document is read and the balancer told while nobody else tells it, where the store can keep others out. Where it
    cannot, one who was taken over in between may tell the balancer last: so the document is read again after, until
    the last that was told is what it says.

    Raises:
        BalancerError: it cannot be told, or does not keep what it was told.
    """
    with world.store.exclusive():
        standing = standing_of(world)
        while True:
            world.balancer.set_weights(standing.weights)
            live, out = dict(world.balancer.weights()), _set_out(world, standing)
            told, standing = standing, standing_of(world)
            if (standing.weights, standing.out) == (told.weights, told.out):
                break
    if live != standing.weights:
        raise BalancerError(f"the balancer was told {_shown(standing.weights)} and divides the traffic {_shown(live)}")
    if out != _sets(standing.out):
        raise BalancerError(f"the balancer was told to leave out {_named(standing.out)} and leaves out {_named(out)}")
    return standing


def _set_out(world: World, standing: RolloutDocument) -> dict[FleetName, frozenset[str]]:
    """Tell the balancer which instances get nothing, and return which do not."""
    if world.instances is None:
        return {}
    world.instances.set_out(standing.out)
    return _sets(world.instances.out())


def standing_of(world: World) -> RolloutDocument:
    """Return the document as it is now.

    Raises:
        DeliveryRefusedError: there is none yet.
    """
    document = world.store.read()
    if document is None:
        raise DeliveryRefusedError("nothing is deployed on this stack yet: run `observatory up` first")
    return document


def _runs_already(standing: RolloutDocument, order: Order) -> bool:
    if standing.unfinished:
        return False
    if order.strategy == "rolling":
        return standing.fleet(order.target or standing.active_fleet).sha256 == order.sha256
    return standing.fleet(standing.active_fleet).sha256 == order.sha256 and order.target is None


def _wanted(world: World, standing: RolloutDocument, order: Order) -> Deployment:
    """Return the deployment to begin, after all checks that change nothing."""
    rolling = order.strategy == "rolling"
    source, target = _fleets_of(standing, order)
    if rolling:
        _check_batch(world, target, order.batch_size)
    _check_drift(world, standing, accept=order.accept_drift)
    if not (order.skip_tests or world.trial):
        raise DeliveryRefusedError(
            f"{order.version} cannot be tried apart from the fleets on this platform; --skip-tests brings it without"
        )
    return Deployment(
        id=uuid.uuid4().hex[:12],
        version=order.version,
        sha256=order.sha256,
        strategy=order.strategy,
        source=source,
        target=target,
        weights=() if rolling else order.weights,
        batch_size=order.batch_size if rolling else None,
        gated=order.gated,
        bake_s=order.bake_s,
        health_check_s=order.health_check_s,
        actor=order.actor,
        approved_by=order.approved_by,
        started=world.clock.now(),
        before=standing.fleet(target),
    )


def _begin(world: World, standing: RolloutDocument, order: Order) -> tuple[RolloutDocument, int]:
    wanted = _wanted(world, standing, order)
    tests = _test(world, order, wanted.target, wanted.id)
    deployment = wanted.model_copy(update={"tests": tests})
    target, fencing = deployment.target, standing.fencing + 1
    if order.strategy == "rolling":
        begun = standing.with_fleet(target, rolling=Rolling(version=order.version, sha256=order.sha256))
    else:
        begun = standing.with_weight(target, 0).with_fleet(target, version=order.version, sha256=order.sha256)
    changed = begun.model_copy(update={"deployment": deployment, "fencing": fencing})
    written = _first_write(world, standing, changed)
    told = {"version", "sha256", "strategy", "source", "target", "weights", "batch_size", "bake_s", "approved_by"}
    world.journal.record("start", deployment=deployment.id, **deployment.model_dump(include=told, exclude_none=True))
    return written, fencing


def _test(world: World, order: Order, target: FleetName, id_: str) -> Literal["passed", "skipped"]:
    """Try the version apart from the fleets, and say so in the journal, also where it is not done."""
    if order.skip_tests:
        world.journal.record("tests-skipped", deployment=id_, version=order.version)
        return "skipped"
    assert world.trial is not None  # noqa: S101 - checked before
    try:
        world.trial.test(target, order.version)
    except HostsError as error:
        world.journal.record("tests-failed", deployment=id_, version=order.version, reason=str(error))
        raise TrialFailedError(
            f"{order.version} failed before it was deployed, nothing was changed: {error}"
        ) from error
    world.journal.record("tests-passed", deployment=id_, version=order.version)
    return "passed"


def _fleets_of(standing: RolloutDocument, order: Order) -> tuple[FleetName, FleetName]:
    """Return the fleet that serves again after a rollback, and the one that gets the version."""
    active = standing.active_fleet
    if order.strategy == "rolling":
        return order.target or active, order.target or active
    if order.target == active:
        raise DeliveryRefusedError(f"{active} serves: deploy to {other(active)}, the idle fleet")
    return active, other(active)


def _check_batch(world: World, fleet: FleetName, batch: int) -> None:
    """Refuse a rolling update that would leave no instance to serve."""
    if world.instances is None:
        raise DeliveryRefusedError("instances are not updated one by one on this platform: use --strategy blue-green")
    size = len(world.instances.names(fleet))
    if size == 1:
        raise DeliveryRefusedError(
            f"no idle capacity: a rolling update takes instances out while the others serve, and {fleet} has one. "
            "Raise fleets.size and run `observatory up`, or use --strategy blue-green"
        )
    if not 1 <= batch < size:
        raise DeliveryRefusedError(f"a batch of {batch}: between 1 and {size - 1} of {fleet}'s {size} instances")
    if not world.hosts.healthy(fleet):
        raise DeliveryRefusedError(
            f"{fleet} has instances that are not ready, which its others must serve for already: `observatory status` "
            "shows them, `observatory up` mends them"
        )
    _check_in_step(world.instances)


def _check_in_step(instances: Instances) -> None:
    """Refuse to touch instances where others would be changed with them: half way there would be no way on."""
    try:
        instances.check()
    except HostsError as error:
        raise DeliveryRefusedError(str(error)) from error


def _take_over(world: World, standing: RolloutDocument) -> tuple[RolloutDocument, int]:
    fencing = standing.fencing + 1
    return _first_write(world, standing, standing.model_copy(update={"fencing": fencing})), fencing


def _first_write(world: World, standing: RolloutDocument, changed: RolloutDocument) -> RolloutDocument:
    try:
        return world.store.compare_and_set(standing, changed)
    except StaleRolloutError as error:
        raise DeliveryRefusedError(f"somebody else was faster: {error}") from error


def _check_drift(world: World, standing: RolloutDocument, *, accept: bool) -> None:
    live, out = dict(world.balancer.weights()), _sets(world.instances.out() if world.instances else standing.out)
    remedy = "find out who changed it; --accept-drift goes on from the document"
    if live != standing.weights and not accept:
        raise DeliveryRefusedError(
            f"the balancer divides the traffic {_shown(live)}, the rollout document says {_shown(standing.weights)}: "
            f"{remedy}"
        )
    if out != _sets(standing.out) and not accept:
        raise DeliveryRefusedError(
            f"the balancer leaves out {_named(out)}, the rollout document {_named(standing.out)}: {remedy}"
        )


def _shown(weights: Mapping[FleetName, int]) -> str:
    return ", ".join(f"{fleet} {weight} %" for fleet, weight in sorted(weights.items()))


def _sets(out: Mapping[FleetName, Collection[str]]) -> dict[FleetName, frozenset[str]]:
    return {fleet: frozenset(names) for fleet, names in out.items() if names}


def _named(out: Mapping[FleetName, Collection[str]]) -> str:
    return ", ".join(sorted(name for names in out.values() for name in names)) or "nothing"


def _run_of(world: World, document: RolloutDocument, fencing: int) -> Run:
    from observatory.delivery.rolling import RollingRun  # noqa: PLC0415 - built on this module

    rolling = document.deployment is not None and document.deployment.strategy == "rolling"
    return (RollingRun if rolling else Run)(world, document, fencing)


class Run:
    """A deployment under way, begun or taken over; `fencing` is its right to write."""

    def __init__(self, world: World, document: RolloutDocument, fencing: int) -> None:
        self._world, self._document, self._fencing = world, document, fencing

    @property
    def _deployment(self) -> Deployment:
        deployment = self._document.deployment
        assert deployment is not None  # noqa: S101 - a run begins with one and never removes it
        return deployment

    def run(self) -> RolloutDocument:
        """Go on from where the document says, to the end or back, with the moving fleet's alerts held back."""
        with self._world.silences.moving(self._deployment.id, self._deployment.target):
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
        world, target = self._world, self._deployment.target
        if self._deployment.status == "preparing":
            converge(world)  # where drift was accepted, the target may have traffic
            self._record("install", fleet=target)
            world.hosts.install(target)
            self._record("verify", fleet=target)
            world.hosts.verify(target)
            self._change(status="shifting", exercised=world.clock.now())
        for index in range(max(self._deployment.step, 0), len(self._deployment.weights)):
            self._shift(index)
            self._bake()
        self._change(status="promoted", request=None)
        self._record("promoted", fleet=target)
        return self._document

    def _shift(self, index: int) -> None:
        weight = self._deployment.weights[index]
        self._must_be_healthy()
        self._write(lambda standing: standing.with_weight(self._deployment.target, weight), step=index)
        self._document = converge(self._world)
        self._record("shift", weights=self._document.weights, step=index)

    def _must_be_healthy(self) -> None:
        clock, seconds = self._world.clock, self._deployment.health_check_s
        deadline = clock.now() + seconds
        while not self._world.hosts.healthy(self._deployment.target):
            if clock.now() >= deadline:
                raise StepFailedError(
                    f"{self._deployment.target} is not ready to take more traffic, and was not within {seconds:g} s"
                )
            clock.sleep(1.0)

    def _bake(self) -> None:
        """Watch the step until it has baked, somebody promotes it, or it fails."""
        if not self._deployment.gated:
            return self._must_be_healthy()
        clock, limits = self._world.clock, self._world.limits
        baked, bad, unjudged = 0.0, 0, 0.0
        looked = clock.now()
        while True:
            clock.sleep(max(0.0, looked + limits.interval_s - clock.now()))
            looked, passed_s = clock.now(), clock.now() - looked
            request = self._request()
            verdict = self._look()
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
        self._document = self._mine(standing_of(self._world))
        if self._deployment.request == "abort":
            raise StepFailedError("aborted on request")
        return self._deployment.request

    def _look(self) -> Verdict:
        limits = self._world.limits
        new, old = self._samples()
        if new and not new.database_down and new.requests < limits.minimum_requests:
            self._world.metrics.probe(self._deployment.target, self._probes())
        verdict = judge(new, old, limits)
        self._record("gate", verdict=verdict.result, reasons=verdict.reasons, new=new, old=old)
        return verdict

    def _samples(self) -> tuple[Sample | None, Sample | None]:
        """Return what is known of the new version, and of the old one beside it."""
        return self._sample(self._deployment.target), self._sample(other(self._deployment.target))

    def _probes(self) -> int:
        """Return how many synthetic requests to the target let it be judged."""
        return self._world.limits.minimum_requests

    def _sample(self, fleet: FleetName, instances: Collection[str] | None = None) -> Sample | None:
        try:
            return self._world.metrics.sample(fleet, instances, since=self._deployment.exercised)
        except MetricsUnavailableError as error:
            self._record("no-metrics", fleet=fleet, reason=str(error))
            return None

    def roll_back(self, reason: str) -> RolloutDocument:
        """Give the traffic back to the source, and see that it serves; the document has the target as it was before."""
        source, target, before = self._deployment.source, self._deployment.target, self._deployment.before

        def back(standing: RolloutDocument) -> RolloutDocument:
            old = standing.with_fleet(target, version=before.version, sha256=before.sha256)
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
            return "" if self._world.hosts.healthy(fleet) else f"{fleet} is not healthy"
        except HostsError as error:
            return f"whether {fleet} is healthy is not known: {error}"

    def _restore_target(self) -> None:
        """Bring the target back to what it ran before; without traffic it may also wait for the next `up`."""
        try:
            self._world.hosts.install(self._deployment.target)
        except HostsError as error:
            self._record("not-restored", fleet=self._deployment.target, reason=str(error))

    def _settle(self) -> None:
        """Tell the balancer; giving up here leaves users on a fleet that was found bad."""

        def tell() -> None:
            self._document = self._mine(converge(self._world))

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
                self._world.clock.sleep(SETTLE_PAUSE_S)
        return None

    def _change(self, **changes: object) -> None:
        self._write(lambda standing: standing, **changes)

    def _write(self, change: Callable[[RolloutDocument], RolloutDocument], **changes: object) -> None:
        """Change the document and its deployment, as long as they are this run's."""
        while True:
            standing = self._mine(standing_of(self._world))
            deployment = self._deployment_of(standing).model_copy(update=changes)
            changed = change(standing).model_copy(update={"deployment": deployment, "fencing": self._fencing})
            try:
                self._document = self._world.store.compare_and_set(standing, changed)
            except StaleRolloutError:
                continue
            return

    def _mine(self, standing: RolloutDocument) -> RolloutDocument:
        if standing.fencing != self._fencing:
            raise TakenOverError(
                f"taken over: the rollout document carries fencing number {standing.fencing}, this deployment's is "
                f"{self._fencing}"
            )
        return standing

    def _deployment_of(self, standing: RolloutDocument) -> Deployment:
        assert standing.deployment is not None  # noqa: S101 - only a newer fencing number could have removed it
        return standing.deployment

    def _record(self, event: str, **details: object) -> None:
        known = {"deployment": self._deployment.id, "version": self._deployment.version}
        self._world.journal.record(event, **{**known, **details})
