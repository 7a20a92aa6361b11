"""Bringing versions of the service to the fleets, and taking them back."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Literal, NoReturn

from observatory.actor import actor
from observatory.bootstrap import OperationError, engine_options
from observatory.delivery.deployment import (
    DeliveryRefusedError,
    Order,
    World,
    ask,
    canary_weights,
    deploy,
    roll_back,
)
from observatory.delivery.protocols import Journal
from observatory.delivery.releases import Manifest, ReleaseError
from observatory.delivery.rollout import FleetName, RolloutDocument, Strategy
from observatory.operations.engines import EngineChoice, choose_engine, module_of
from observatory.operations.journal import open_journal
from observatory.operations.permission import permission
from observatory.operations.state import outputs
from observatory.platforms.alertmanager import Alertmanager, FleetSilences
from observatory.platforms.local import HaproxyBalancer, LocalHosts, SystemClock
from observatory.platforms.prometheus import PrometheusMetrics
from observatory.platforms.trial import LocalTrial
from observatory.progress import Reporter, silent
from observatory.settings import FLEETS, StackSettings, load_file
from observatory.signing import trusted_keys
from observatory.workspace import Workspace

BLUE_GREEN: tuple[int, ...] = (100,)


def deploy_application(
    workspace: Workspace,
    *,
    version: str,
    strategy: Strategy,
    target: FleetName | None = None,
    canary_percentage: int | None = None,
    bake_seconds: float | None = None,
    skip_tests: bool = False,
    approved_by: str | None = None,
    way_back: bool = False,
    accept_drift: bool = False,
    choice: EngineChoice = "auto",
    report: Reporter = silent,
) -> RolloutDocument:
    """Bring a kept version to a fleet and give it the traffic, step by step under gates; undo it on any trouble.

    Called again after it was killed, it goes on where it was.

    Args:
        workspace: the stack's.
        version: a kept release.
        strategy: blue-green moves all traffic at once, canary by steps.
        target: the fleet; None for the idle one.
        canary_percentage: first step of a canary; None for the first of the settings.
        bake_seconds: how long each step is watched; None for the settings'.
        skip_tests: do not try the version apart from the fleets first; the rollout document and the journal say so.
        approved_by: who has approved the version, as a pipeline knows it; None looks for a record of `approve_release`.
        way_back: this undoes something, and so waits for no window and no approval.
        accept_drift: go on although the balancer divides the traffic in another way than the rollout document says.
        choice: of the engine that installs the version.
        report: gets progress.

    Raises:
        DeliveryRefusedError: nothing was changed.
        NotPermittedError: no window is open, or nobody has approved; nothing was changed.
        TrialFailedError: the version failed when it was tried before anything moved; nothing was changed.
        LockHeldError: another deployment is under way; nothing was changed.
        RolledBackError: the old fleet serves.
        RollbackFailedError: and the way back failed.
        TakenOverError: a rollback or another deployment took over.
        KeyboardInterrupt: interrupted, and rolled back.
    """
    settings = _local(workspace)
    manifest = _manifest(workspace, settings, version)
    known = outputs(workspace, show_secrets=True)
    _check_schema(manifest, known, settings)
    approver = approved_by if way_back else permission(workspace, settings, manifest, approved_by=approved_by)
    weights = BLUE_GREEN
    if strategy == "canary":
        steps = settings.delivery.canary_steps
        weights = canary_weights(steps[0] if canary_percentage is None else canary_percentage, steps)
    order = Order(
        version=manifest.version,
        sha256=manifest.sha256,
        strategy=strategy,
        target=target,
        weights=weights,
        bake_s=settings.delivery.bake_seconds if bake_seconds is None else bake_seconds,
        actor=actor(),
        approved_by=approver,
        accept_drift=accept_drift,
        skip_tests=skip_tests,
    )
    with (
        open_journal(workspace, settings, report) as journal,
        _deployment_lock(known["admin_database_url"], settings),
        _terminated_as_interrupted(),
    ):
        return deploy(_world(workspace, settings, known, choice, journal), order)


def roll_back_application(workspace: Workspace, *, reason: str, report: Reporter = silent) -> RolloutDocument:
    """Give all traffic back to the fleet that served before, at once, taking over from a deployment that runs.

    Needs the rollout document and the balancer only: no database, no lock, no engine.

    Raises:
        DeliveryRefusedError: there is nothing to roll back to.
        RollbackFailedError: the balancer cannot be told, or the fleet is not healthy.
    """
    settings = _local(workspace)
    with open_journal(workspace, settings, report) as journal:
        world = _world(workspace, settings, outputs(workspace), "auto", journal)
        return roll_back(world, actor=actor(), reason=reason)


def control_rollout(workspace: Workspace, request: Literal["pause", "promote", "abort"] | None) -> RolloutDocument:
    """Ask something of the deployment that runs at another terminal; None resumes a paused one.

    Raises:
        DeliveryRefusedError: none is under way.
    """
    settings = _local(workspace)
    with open_journal(workspace, settings, silent) as journal:
        return ask(_world(workspace, settings, outputs(workspace), "auto", journal), request)


def _local(workspace: Workspace) -> StackSettings:
    settings = load_file(workspace.config_file)
    if settings.platform != "local":
        raise OperationError(
            f"the stack {workspace.stack!r} is on {settings.platform}: deliveries there are not built yet; nothing was "
            "changed"
        )
    return settings


def _manifest(workspace: Workspace, settings: StackSettings, version: str) -> Manifest:
    """Return the manifest of a kept version; its signature is checked again, since anybody may write into a store."""
    try:
        return workspace.releases.checked(version, trusted_keys(workspace, settings))
    except ReleaseError as error:
        raise DeliveryRefusedError(str(error)) from error


def _check_schema(manifest: Manifest, known: Any, settings: StackSettings) -> None:
    """Refuse a version that the schema does not fit: one that is too old, or that took away what the version needs."""
    from observatory.database.connection import with_database  # noqa: PLC0415 - psycopg only where it is used
    from observatory.database.phases import contracted_beyond  # noqa: PLC0415

    schema = int(known.get("schema_version") or 0)
    if schema < manifest.schema_min:
        raise DeliveryRefusedError(
            f"{manifest.version} works with schema {manifest.schema_min} and later, the schema is {schema}: run "
            "`observatory deploy database` first, or deploy another version"
        )
    conninfo = with_database(known["admin_database_url"], settings.database.name)
    if contracted := contracted_beyond(conninfo, manifest.schema_max):
        raise DeliveryRefusedError(
            f"{manifest.version} knows schema {manifest.schema_max}, and migration {contracted} took away what it "
            "needs: deploy a later version"
        )


def _world(workspace: Workspace, settings: StackSettings, known: Any, choice: EngineChoice, journal: Journal) -> World:
    if not known:
        raise DeliveryRefusedError(f"the stack {workspace.stack!r} is not up: run `observatory up` first")
    sandbox, size = workspace.sandbox, settings.fleets.size
    runner = module_of(choose_engine(choice))
    hosts = LocalHosts(
        rollout=workspace.rollout,
        ports={fleet: range(getattr(settings.ports, fleet), getattr(settings.ports, fleet) + size) for fleet in FLEETS},
        preview_url=known["preview_url"],
        api_key=known["api_key"],
        plan=lambda: runner.preview(engine_options(workspace)),
        up=lambda: runner.up(engine_options(workspace)),
        marked=lambda: _marked(known["admin_database_url"], settings),
    )
    metrics = PrometheusMetrics(
        url=known["prometheus_url"],
        stack=workspace.stack,
        preview_url=known["preview_url"],
        api_key=known["api_key"],
    )
    return World(
        store=workspace.rollout,
        balancer=HaproxyBalancer(sandbox),
        hosts=hosts,
        metrics=metrics,
        silences=FleetSilences(Alertmanager(url=known["alertmanager_url"], stack=workspace.stack), journal.record),
        clock=SystemClock(),
        journal=journal,
        trial=LocalTrial(
            sandbox=sandbox,
            settings=settings,
            releases=workspace.releases,
            api_key=known.get("api_key", ""),
            marked=lambda: _marked(known["admin_database_url"], settings),
        ),
        limits=settings.delivery.gates,
    )


@contextlib.contextmanager
def _marked(admin_url: str, settings: StackSettings) -> Iterator[str]:
    """Give the trace id of one verification; what it wrote is removed, and what killed ones left."""
    from observatory.database import connect  # noqa: PLC0415 - psycopg only where it is used
    from observatory.database.connection import with_database  # noqa: PLC0415
    from observatory.database.smoke import marked_rows  # noqa: PLC0415

    conninfo = with_database(admin_url, settings.database.name)
    with connect(conninfo, purpose="verify a fleet") as connection, marked_rows(connection) as run:
        yield run


@contextlib.contextmanager
def _deployment_lock(admin_url: str, settings: StackSettings) -> Iterator[None]:
    """Hold the deployment lock: one deployment at a time; PostgreSQL frees it when this process ends."""
    from observatory.database import connect  # noqa: PLC0415 - psycopg only where it is used
    from observatory.database.connection import with_database  # noqa: PLC0415
    from observatory.database.lock import DEPLOYMENT_LOCK, session_lock  # noqa: PLC0415

    with (
        connect(with_database(admin_url, settings.database.name), purpose="deployment") as connection,
        session_lock(connection, DEPLOYMENT_LOCK, wait_s=0),
    ):
        yield


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM undo what is under way, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
