"""Bringing versions of the service to the fleets, and taking them back."""

from __future__ import annotations

import contextlib
import os
from typing import Literal, TypedDict, Unpack

from observatory.delivery.control import send_control_request
from observatory.delivery.deployment import deploy, preview_deployment
from observatory.delivery.environment import Environment, HostsError
from observatory.delivery.errors import DeliveryRefusedError, RolledBackError, TrialFailedError
from observatory.delivery.releases import Manifest, ReleaseError
from observatory.delivery.request import DeploymentRequest, canary_weights
from observatory.delivery.rollback import preview_rollback, roll_back
from observatory.documents.rollout import HEALTH_CHECK_S, Deployment, RolloutDocument, Strategy, other
from observatory.interruption import interruptible
from observatory.operations.engine_choice import EngineChoice
from observatory.operations.environments import administrator, environment_of, known_of
from observatory.operations.journal import open_journal
from observatory.operations.locks import deployment_lock
from observatory.operations.permission import permission
from observatory.operations.signing import trusted_keys
from observatory.platforms.stores import release_store
from observatory.progress import Reporter, silent
from observatory.security.actor import actor
from observatory.settings import FleetName, StackSettings, load_file
from observatory.workspace import Workspace

BLUE_GREEN: tuple[int, ...] = (100,)
NICENESS = 10  # nice(1)'s own: where the CPU is short, about a tenth of what a request's process gets
TAKEN_OVER_SECONDS = 60.0  # for a deployment that was taken over to end: at its next look, or when its `up` has ended


class DeliveryOptions(TypedDict, total=False):
    """What may be wanted of a deployment beyond its version and strategy.

    Attributes:
        target: the fleet; None for the idle one, of a rolling update for the one that serves.
        canary_percentage: first step of a canary; None for the first of the settings.
        batch_size: instances that a rolling update takes at a time; by default 1.
        bake_seconds: how long each step is watched; None for the settings'.
        health_check_seconds: how long a fleet gets to be ready before it takes more traffic.
        skip_tests: do not try the version apart from the fleets first; the rollout document and the journal say so.
        approved_by: who has approved the version, as a pipeline knows it; None looks for a record of `approve_release`.
        accept_drift: go on although the balancer divides the traffic in another way than the rollout document says.
    """

    target: FleetName | None
    canary_percentage: int | None
    batch_size: int
    bake_seconds: float | None
    health_check_seconds: float
    skip_tests: bool
    approved_by: str | None
    accept_drift: bool


def deploy_application(
    workspace: Workspace,
    *,
    version: str,
    strategy: Strategy,
    choice: EngineChoice = "auto",
    report: Reporter = silent,
    **options: Unpack[DeliveryOptions],
) -> RolloutDocument:
    """Bring a kept version to a fleet and give it the traffic, or to a fleet's instances by turns; undo any trouble.

    Called again after it was killed, it goes on where it was. This process has a lower priority from then on: where it
    shares a machine with the fleets, users' requests come first.

    Args:
        workspace: the stack's.
        version: a kept release.
        strategy: blue-green moves all traffic at once, canary by steps; rolling moves none, and takes the instances of
            one fleet by turns.
        choice: of the engine that installs the version.
        report: gets progress.
        options: see `DeliveryOptions`.

    Raises:
        DeliveryRefusedError: nothing was changed.
        NotPermittedError: no window is open, or nobody has approved; nothing was changed.
        TrialFailedError: the version failed when it was tried before anything moved; nothing was changed.
        LockHeldError: another deployment is under way; nothing was changed.
        RolledBackError: the old version serves.
        RollbackFailedError: and the way back failed.
        TakenOverError: a rollback or another deployment took over.
        KeyboardInterrupt: interrupted, and rolled back.
    """
    _give_way()
    settings, known = load_file(workspace.config_file), known_of(workspace, show_secrets=True)
    conninfo = administrator(settings, known)
    request = _deployment_request(workspace, settings, conninfo, version=version, strategy=strategy, options=options)
    with (
        open_journal(workspace, settings, report, conninfo=lambda: conninfo) as journal,
        deployment_lock(workspace, conninfo),
        interruptible(),
    ):
        return deploy(environment_of(workspace, settings, known, journal=journal, choice=choice), request)


def _give_way() -> None:
    """Let those who serve on this machine come first. The daemons are not children of this process, and keep theirs."""
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))


def plan_application(
    workspace: Workspace, *, version: str, strategy: Strategy, **options: Unpack[DeliveryOptions]
) -> Deployment | None:
    """Return what `deploy_application` would begin or go on with, None where the version serves; change nothing.

    Raises:
        DeliveryRefusedError, NotPermittedError: as `deploy_application` would.
    """
    settings, known = load_file(workspace.config_file), known_of(workspace, show_secrets=True)
    conninfo = administrator(settings, known)
    request = _deployment_request(workspace, settings, conninfo, version=version, strategy=strategy, options=options)
    with open_journal(workspace, settings, silent) as journal:
        return preview_deployment(environment_of(workspace, settings, known, journal=journal), request)


def _deployment_request(
    workspace: Workspace,
    settings: StackSettings,
    conninfo: str,
    *,
    version: str,
    strategy: Strategy,
    options: DeliveryOptions,
) -> DeploymentRequest:
    """Return the request, after what is to be asked before: signature, schema, window and approval."""
    manifest = checked_release(workspace, version)
    _check_schema(manifest, conninfo)
    weights, bake_s = BLUE_GREEN, options.get("bake_seconds")
    if strategy == "canary":
        steps, first = settings.delivery.canary_steps, options.get("canary_percentage")
        weights = canary_weights(steps[0] if first is None else first, steps)
    return DeploymentRequest(
        version=manifest.version,
        sha256=manifest.sha256,
        strategy=strategy,
        target=options.get("target"),
        weights=weights,
        batch_size=options.get("batch_size", 1),
        bake_s=settings.delivery.bake_seconds if bake_s is None else bake_s,
        health_check_s=options.get("health_check_seconds", HEALTH_CHECK_S),
        actor=actor(),
        approved_by=permission(workspace, settings, manifest, approved_by=options.get("approved_by")),
        accept_drift=options.get("accept_drift", False),
        skip_tests=options.get("skip_tests", False),
    )


def roll_back_application(
    workspace: Workspace,
    *,
    reason: str,
    emergency: bool = False,
    choice: EngineChoice = "auto",
    report: Reporter = silent,
) -> RolloutDocument:
    """Undo the last deployment, taking over from it where it runs.

    The fleet that served before gets all traffic at once; this needs the rollout document and the balancer only: no
    database, no lock, no engine. The instances of a rolling update are brought back by turns, by the engine. Unless it
    is an emergency, the audit's table is written afterwards, where it can be.

    Raises:
        DeliveryRefusedError: there is nothing to roll back to.
        RollbackFailedError: the balancer cannot be told, an instance not be brought back, or the fleet is not healthy.
    """
    settings, known = load_file(workspace.config_file), known_of(workspace, show_secrets=False)
    conninfo = None if emergency else lambda: administrator(settings, known)
    with open_journal(workspace, settings, report, conninfo=conninfo) as journal:
        environment = environment_of(workspace, settings, known, journal=journal, choice=choice)
        return roll_back(environment, actor=actor(), reason=reason)


def plan_rollback(workspace: Workspace) -> tuple[Deployment, bool]:
    """Return the deployment that `roll_back_application` would undo, and whether the fleet that would serve is healthy.

    Raises:
        DeliveryRefusedError: there is nothing to roll back to.
    """
    settings, known = load_file(workspace.config_file), known_of(workspace, show_secrets=False)
    with open_journal(workspace, settings, silent) as journal:
        return preview_rollback(environment_of(workspace, settings, known, journal=journal))


def roll_back_to_version(
    workspace: Workspace,
    *,
    version: str,
    reason: str,
    skip_tests: bool = False,
    choice: EngineChoice = "auto",
    report: Reporter = silent,
) -> RolloutDocument:
    """Bring any kept version back into service, and see that it is healthy.

    A deployment that is under way is undone first, taking over from it. The version comes by way of the idle fleet, is
    exercised there, and gets all traffic at once. It waits for no window and no approval, and no gate judges it:
    metrics of bad minutes, or none, must not keep users on what they are to be rescued from.

    Args:
        workspace: the stack's.
        version: a kept release.
        reason: for the record.
        skip_tests: do not try the version apart from the fleets first; the rollout document and the journal say so.
        choice: of the engine that installs the version.
        report: gets progress.

    Raises:
        DeliveryRefusedError: the version is not kept or does not fit the schema; nothing was changed.
        TrialFailedError: the version failed when it was tried before anything moved.
        LockHeldError: somebody else holds the deployment lock, and did not give it up.
        RolledBackError: the version does not get healthy; what served before serves.
        RollbackFailedError: the deployment under way cannot be undone.
    """
    settings, known = load_file(workspace.config_file), known_of(workspace, show_secrets=True)
    conninfo = administrator(settings, known)
    request = _way_back_to(workspace, version, conninfo, skip_tests=skip_tests)
    with (
        open_journal(workspace, settings, report, conninfo=lambda: conninfo) as journal,
        interruptible(),
    ):
        environment = environment_of(workspace, settings, known, journal=journal, choice=choice)
        if _other_under_way(environment, request):
            with contextlib.suppress(DeliveryRefusedError):  # it has gone back meanwhile
                roll_back(environment, actor=actor(), reason=f"{reason}: back to {version}")
        with deployment_lock(workspace, conninfo, wait_s=TAKEN_OVER_SECONDS):
            done = deploy(environment, request)
    if not environment.hosts.healthy(done.active_fleet):
        raise RolledBackError(f"{version} serves on {done.active_fleet}, which is not healthy: `observatory status`")
    return done


def plan_rollback_to_version(workspace: Workspace, *, version: str) -> tuple[Deployment | None, Deployment | None]:
    """Return the deployment under way that `roll_back_to_version` would undo, and the one that it would begin.

    The second is None where the version serves, and where it is not known before the first is undone.

    Raises:
        DeliveryRefusedError: as `roll_back_to_version` would.
    """
    settings, known = load_file(workspace.config_file), known_of(workspace, show_secrets=True)
    request = _way_back_to(workspace, version, administrator(settings, known), skip_tests=False)
    with open_journal(workspace, settings, silent) as journal:
        environment = environment_of(workspace, settings, known, journal=journal)
        if _other_under_way(environment, request):
            return preview_rollback(environment)[0], None
        return None, preview_deployment(environment, request)


def _way_back_to(workspace: Workspace, version: str, conninfo: str, *, skip_tests: bool) -> DeploymentRequest:
    manifest = checked_release(workspace, version)
    _check_schema(manifest, conninfo)
    return DeploymentRequest(
        version=manifest.version,
        sha256=manifest.sha256,
        strategy="blue-green",
        gated=False,
        bake_s=0,
        actor=actor(),
        accept_drift=True,
        skip_tests=skip_tests,
    )


def _other_under_way(environment: Environment, request: DeploymentRequest) -> bool:
    """Tell whether a deployment is under way that is not this way back, which goes on where it was killed."""
    current = environment.store.read()
    found = current.unfinished if current else None
    return found is not None and (found.sha256, found.gated) != (request.sha256, request.gated)


def control_rollout(workspace: Workspace, request: Literal["pause", "promote", "abort"] | None) -> RolloutDocument:
    """Ask something of the deployment that runs at another terminal; None resumes a paused one.

    Raises:
        DeliveryRefusedError: none is under way.
    """
    settings, known = load_file(workspace.config_file), known_of(workspace, show_secrets=False)
    with open_journal(workspace, settings, silent) as journal:
        return send_control_request(environment_of(workspace, settings, known, journal=journal), request)


def checked_release(workspace: Workspace, version: str) -> Manifest:
    """Return the manifest of a kept version; its signature is checked again, since anybody may write into a store.

    Raises:
        DeliveryRefusedError: it is not kept, not whole, or not signed by anybody trusted.
    """
    settings = load_file(workspace.config_file)
    try:
        return release_store(workspace, settings).checked(version, trusted_keys(workspace, settings))
    except ReleaseError as error:
        raise DeliveryRefusedError(str(error)) from error


def try_release(workspace: Workspace, version: str, *, report: Reporter = silent) -> None:
    """Try a kept version as an instance of the idle fleet, apart from both, where the platform can.

    Raises:
        TrialFailedError: it fails; nothing was changed.
    """
    settings, known = load_file(workspace.config_file), known_of(workspace, show_secrets=True)
    with open_journal(workspace, settings, report) as journal:
        environment = environment_of(workspace, settings, known, journal=journal)
        current = environment.store.read()
        if environment.trial is None or current is None:
            return
        try:
            environment.trial.test(other(current.active_fleet), version)
        except HostsError as error:
            raise TrialFailedError(f"{version} failed before it was deployed, nothing was changed: {error}") from error


def _check_schema(manifest: Manifest, conninfo: str) -> None:
    """Refuse a version that the schema does not fit: one that is too old, or that took away what the version needs."""
    from observatory.database import status  # noqa: PLC0415 - psycopg only where it is used
    from observatory.database.migrations.expand_contract import contracted_beyond  # noqa: PLC0415

    schema = status(conninfo).version
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
