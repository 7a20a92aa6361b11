"""Deploying versions of the service to the fleets, and controlling a running deployment."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TypedDict, Unpack

from observatory.delivery.deployment import deploy, preview_deployment
from observatory.delivery.errors import DeliveryRefusedError
from observatory.delivery.preparation import try_version
from observatory.delivery.releases import Manifest
from observatory.delivery.request import DeploymentRequest, canary_weights
from observatory.documents.rollout import HEALTH_CHECK_S, Deployment, RolloutDocument, Strategy, other
from observatory.interruption import interruptible
from observatory.operations.delivery_journal import open_journal
from observatory.operations.deployment_lock import deployment_lock
from observatory.operations.interrupted_delivery import explained_interruption
from observatory.operations.release_approvals import check_permission
from observatory.operations.releases import checked_release
from observatory.operations.stack_outputs import required_outputs
from observatory.platforms import open_platform
from observatory.platforms.delivery_environment import delivery_environment
from observatory.platforms.platform import EngineChoice, Platform
from observatory.progress import Reporter, silent
from observatory.security.actor import actor
from observatory.settings import FleetName
from observatory.workspace import Workspace

BLUE_GREEN: tuple[int, ...] = (100,)
NICENESS = 10  # of nice(1): where the CPU is short, about a tenth of the share of a normal process


class DeliveryOptions(TypedDict, total=False):
    """Options of a deployment beyond its version and strategy.

    Attributes:
        target: the fleet; None for the idle one, of a rolling update for the active one.
        canary_percentage: first step of a canary, in percent; None for the first of the settings.
        batch_size: instances in each batch of a rolling update; by default 1.
        bake_seconds: how long gates evaluate each step; None for the settings' time.
        health_check_seconds: how long a fleet has to become ready before it gets more traffic.
        skip_tests: skip the trial before the deployment; the rollout document and the journal record this.
        accept_drift: continue although the balancer's weights differ from the rollout document.
    """

    target: FleetName | None
    canary_percentage: int | None
    batch_size: int
    bake_seconds: float | None
    health_check_seconds: float
    skip_tests: bool
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
    """Install a stored version on a fleet and shift the traffic to it, or update a fleet's instances in batches.

    A failure rolls the deployment back. After it was killed, the same call continues. This process runs at a lower
    priority from then on, so that users' requests come first where it shares a machine with the fleets.

    Args:
        workspace: the stack's.
        version: a stored release.
        strategy: blue-green shifts all traffic at once, canary in steps; rolling shifts none and updates the instances
            of one fleet in batches.
        choice: of the engine that installs the version.
        report: gets progress.
        options: see `DeliveryOptions`.

    Raises:
        DeliveryRefusedError: a check before the deployment failed; nothing was changed.
        NotPermittedError: no window is open, or an approval is missing; nothing was changed.
        TrialFailedError: the version failed its trial; nothing was changed.
        UnjudgedVersionError: so did the live version; nothing was changed.
        LockHeldError: another deployment is under way; nothing was changed. `waiting_for_lock` waits for it.
        RolledBackError: the deployment was rolled back; the old version is active.
        DeploymentPausedError: the gates had no verdict for too long; the deployment keeps its traffic weights.
        RollbackFailedError: the rollback failed, too.
        TakenOverError: a rollback or another deployment took over.
        KeyboardInterrupt: interrupted, and rolled back.
    """
    return run_deployment(
        workspace, version=version, strategy=strategy, window_checked=False, choice=choice, report=report, **options
    )


def run_deployment(
    workspace: Workspace,
    *,
    version: str,
    strategy: Strategy,
    window_checked: bool,
    choice: EngineChoice,
    report: Reporter,
    **options: Unpack[DeliveryOptions],
) -> RolloutDocument:
    """As `deploy_application`; with `window_checked` a workflow has checked the window at its start."""
    _lower_priority()
    platform = open_platform(workspace)
    outputs = required_outputs(platform, show_secrets=True)
    conninfo = platform.administrator(outputs)

    def request() -> DeploymentRequest:
        return _deployment_request(
            platform, conninfo, version=version, strategy=strategy, options=options, window_checked=window_checked
        )

    request()  # what is refused is refused at once
    with (
        open_journal(platform, report, conninfo=lambda: conninfo) as journal,
        deployment_lock(workspace, conninfo, command=f"deploy application {version}") as lock,
        explained_interruption(platform),
        interruptible(),
    ):
        environment = delivery_environment(platform, outputs, journal=journal, choice=choice)
        return deploy(replace(environment, lock=lock), request())  # again: the wait for the lock may have taken hours


def _lower_priority() -> None:
    """Lower the priority of this process. The daemons are not its children and keep theirs."""
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))


def plan_application(
    workspace: Workspace, *, version: str, strategy: Strategy, **options: Unpack[DeliveryOptions]
) -> Deployment | None:
    """Return the deployment that `deploy_application` would start or continue; None where the version is active.

    Raises:
        DeliveryRefusedError, NotPermittedError: as `deploy_application` would.
    """
    platform = open_platform(workspace)
    outputs = required_outputs(platform, show_secrets=True)
    conninfo = platform.administrator(outputs)
    request = _deployment_request(platform, conninfo, version=version, strategy=strategy, options=options)
    with open_journal(platform, silent) as journal:
        return preview_deployment(delivery_environment(platform, outputs, journal=journal), request)


def _deployment_request(
    platform: Platform,
    conninfo: str,
    *,
    version: str,
    strategy: Strategy,
    options: DeliveryOptions,
    window_checked: bool = False,
) -> DeploymentRequest:
    """Return the request after checking signature, schema, window and approval."""
    manifest = checked_release(platform, version)
    check_schema(manifest, conninfo)
    approved_by = check_permission(platform, manifest, window_checked=window_checked)
    return request_of(platform, manifest, strategy=strategy, options=options, approved_by=approved_by)


def request_of(
    platform: Platform, manifest: Manifest, *, strategy: Strategy, options: DeliveryOptions, approved_by: str | None
) -> DeploymentRequest:
    """Return the request for a release by the stack's settings.

    Raises:
        DeliveryRefusedError: the percentage of the first step is out of range.
    """
    delivery = platform.settings.delivery
    weights, bake_s = BLUE_GREEN, options.get("bake_seconds")
    if strategy == "canary":
        steps, first = delivery.canary_steps, options.get("canary_percentage")
        weights = canary_weights(steps[0] if first is None else first, steps)
    return DeploymentRequest(
        version=manifest.version,
        sha256=manifest.sha256,
        strategy=strategy,
        target=options.get("target"),
        weights=weights,
        batch_size=options.get("batch_size", 1),
        bake_s=delivery.bake_seconds if bake_s is None else bake_s,
        health_check_s=options.get("health_check_seconds", HEALTH_CHECK_S),
        actor=actor(),
        approved_by=approved_by,
        accept_drift=options.get("accept_drift", False),
        skip_tests=options.get("skip_tests", False),
    )


def try_release(platform: Platform, version: str, *, report: Reporter = silent) -> None:
    """Run the trial of a stored version as an instance of the idle fleet, where the platform has trials.

    Raises:
        TrialFailedError: it failed; nothing was changed.
        UnjudgedVersionError: so does the live version; nothing was changed.
    """
    outputs = required_outputs(platform, show_secrets=True)
    with open_journal(platform, report) as journal:
        environment = delivery_environment(platform, outputs, journal=journal)
        current = environment.store.read()
        if environment.trial is None or current is None:
            return
        try_version(environment, other(current.active_fleet), version, partial(journal.record, version=version))


def check_schema(manifest: Manifest, conninfo: str) -> None:
    """Check that a version works with the current schema.

    Raises:
        DeliveryRefusedError: the schema is too old, or a migration has removed what the version needs.
    """
    from observatory.database import reached_version  # noqa: PLC0415 - psycopg only where it is used
    from observatory.database.migrations.expand_contract import contracted_beyond  # noqa: PLC0415

    schema = reached_version(conninfo, manifest.schema_min)
    if schema < manifest.schema_min:
        raise DeliveryRefusedError(
            f"{manifest.version} needs schema {manifest.schema_min} or later, the schema is {schema}: run `observatory "
            "deploy database` first, or deploy another version"
        )
    if contracted := contracted_beyond(conninfo, manifest.schema_max):
        raise DeliveryRefusedError(
            f"{manifest.version} supports schema {manifest.schema_max}, and migration {contracted} has removed what it "
            "needs: deploy a later version"
        )
