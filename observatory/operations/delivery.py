"""Bringing versions of the service to the fleets, and taking them back."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Literal, NoReturn

from observatory.actor import actor
from observatory.delivery.deployment import (
    DeliveryRefusedError,
    Order,
    ask,
    canary_weights,
    deploy,
    roll_back,
)
from observatory.delivery.releases import Manifest, ReleaseError
from observatory.delivery.rollout import FleetName, RolloutDocument, Strategy
from observatory.operations.engines import EngineChoice
from observatory.operations.journal import open_journal
from observatory.operations.permission import permission
from observatory.operations.worlds import administrator, known_of, world_of
from observatory.platforms.stores import release_store
from observatory.progress import Reporter, silent
from observatory.settings import StackSettings, load_file
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
    settings = load_file(workspace.config_file)
    manifest = _manifest(workspace, settings, version)
    known = known_of(workspace, show_secrets=True)
    conninfo = administrator(settings, known)
    _check_schema(manifest, int(known.get("schema_version") or 0), conninfo)
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
        open_journal(workspace, settings, report, conninfo=lambda: conninfo) as journal,
        _deployment_lock(conninfo),
        _terminated_as_interrupted(),
    ):
        return deploy(world_of(workspace, settings, known, journal=journal, choice=choice), order)


def roll_back_application(
    workspace: Workspace, *, reason: str, emergency: bool = False, report: Reporter = silent
) -> RolloutDocument:
    """Give all traffic back to the fleet that served before, at once, taking over from a deployment that runs.

    Needs the rollout document and the balancer only: no database, no lock, no engine. Unless it is an emergency, the
    audit's table is written afterwards, where it can be.

    Raises:
        DeliveryRefusedError: there is nothing to roll back to.
        RollbackFailedError: the balancer cannot be told, or the fleet is not healthy.
    """
    settings, known = load_file(workspace.config_file), known_of(workspace, show_secrets=False)
    conninfo = None if emergency else lambda: administrator(settings, known)
    with open_journal(workspace, settings, report, conninfo=conninfo) as journal:
        world = world_of(workspace, settings, known, journal=journal)
        return roll_back(world, actor=actor(), reason=reason)


def control_rollout(workspace: Workspace, request: Literal["pause", "promote", "abort"] | None) -> RolloutDocument:
    """Ask something of the deployment that runs at another terminal; None resumes a paused one.

    Raises:
        DeliveryRefusedError: none is under way.
    """
    settings, known = load_file(workspace.config_file), known_of(workspace, show_secrets=False)
    with open_journal(workspace, settings, silent) as journal:
        return ask(world_of(workspace, settings, known, journal=journal), request)


def _manifest(workspace: Workspace, settings: StackSettings, version: str) -> Manifest:
    """Return the manifest of a kept version; its signature is checked again, since anybody may write into a store."""
    try:
        return release_store(workspace, settings).checked(version, trusted_keys(workspace, settings))
    except ReleaseError as error:
        raise DeliveryRefusedError(str(error)) from error


def _check_schema(manifest: Manifest, schema: int, conninfo: str) -> None:
    """Refuse a version that the schema does not fit: one that is too old, or that took away what the version needs."""
    from observatory.database.phases import contracted_beyond  # noqa: PLC0415 - psycopg only where it is used

    if schema < manifest.schema_min:
        raise DeliveryRefusedError(
            f"{manifest.version} works with schema {manifest.schema_min} and later, the schema is {schema}: run "
            "`observatory deploy database` first, or deploy another version"
        )
    if contracted := contracted_beyond(conninfo, manifest.schema_max):
        raise DeliveryRefusedError(
            f"{manifest.version} knows schema {manifest.schema_max}, and migration {contracted} took away what it "
            "needs: deploy a later version"
        )


@contextlib.contextmanager
def _deployment_lock(conninfo: str) -> Iterator[None]:
    """Hold the deployment lock: one deployment at a time; PostgreSQL frees it when this process ends."""
    from observatory.database import connect  # noqa: PLC0415 - psycopg only where it is used
    from observatory.database.lock import DEPLOYMENT_LOCK, session_lock  # noqa: PLC0415

    with (
        connect(conninfo, purpose="deployment") as connection,
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
