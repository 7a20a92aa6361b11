"""What a delivery works with, on the platform of the stack: the one place where they differ."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from observatory.delivery.environment import Balancer, Environment, Hosts, Instances, Journal, Trial
from observatory.delivery.errors import DeliveryRefusedError
from observatory.operations.bootstrap import engine_options
from observatory.operations.engine_choice import EngineChoice, choose_engine, module_of
from observatory.operations.plan import SCHEMA_TYPE
from observatory.operations.state import declared_schema, outputs
from observatory.platforms.alertmanager import Alertmanager, FleetSilences
from observatory.platforms.clock import SystemClock
from observatory.platforms.preview import Preview
from observatory.platforms.prometheus import TRAFFIC, PrometheusMetrics
from observatory.platforms.stores import rollout_store
from observatory.settings import FLEETS, StackSettings
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.engines.embedded import Result
    from observatory.settings import AwsSettings


def known_of(workspace: Workspace, *, show_secrets: bool) -> Mapping[str, Any]:
    """Return the stack's outputs, which say where its parts are.

    Raises:
        DeliveryRefusedError: it was never up.
    """
    if not (known := outputs(workspace)):
        raise DeliveryRefusedError(f"the stack {workspace.stack!r} is not up: run `observatory up` first")
    return outputs(workspace, show_secrets=True) if show_secrets else known


def environment_of(
    workspace: Workspace,
    settings: StackSettings,
    known: Mapping[str, Any],
    *,
    journal: Journal,
    choice: EngineChoice = "auto",
) -> Environment:
    """Return what deliveries on a stack work with.

    Args:
        workspace: the stack's.
        settings: the stack's.
        known: its outputs; only verifying a fleet and probing it need those that are secret.
        journal: is told of every step.
        choice: of the engine that installs a version on this machine.
    """

    def marked() -> AbstractContextManager[str]:
        return _marked(administrator(settings, known))

    preview = Preview(url=known["preview_url"], api_key=known["api_key"], marked=marked)
    if settings.platform == "local":
        balancer, hosts, trial, instances = _on_this_machine(workspace, settings, preview, choice)
    else:
        instances = None
        balancer, hosts, trial = _on_aws(workspace, settings, known, preview)
    return Environment(
        store=rollout_store(workspace, settings),
        balancer=balancer,
        hosts=hosts,
        metrics=PrometheusMetrics(
            url=known["prometheus_url"],
            stack=workspace.stack,
            traffic=TRAFFIC[settings.platform],
            preview_url=known["preview_url"],
            api_key=known["api_key"],
        ),
        silences=FleetSilences(Alertmanager(url=known["alertmanager_url"], stack=workspace.stack), journal.record),
        clock=SystemClock(),
        journal=journal,
        trial=trial,
        instances=instances,
        limits=settings.delivery.gates,
    )


def _on_this_machine(
    workspace: Workspace, settings: StackSettings, preview: Preview, choice: EngineChoice
) -> tuple[Balancer, Hosts, Trial | None, Instances | None]:
    from observatory.platforms.local.fleets import HaproxyBalancer, LocalHosts  # noqa: PLC0415 - not where AWS is asked
    from observatory.platforms.local.instances import LocalInstances  # noqa: PLC0415 - not where AWS is asked
    from observatory.platforms.local.trial import LocalTrial  # noqa: PLC0415

    size, runner = settings.fleets.size, module_of(choose_engine(choice))
    first = {fleet: int(getattr(settings.ports, fleet)) for fleet in FLEETS}
    hosts = LocalHosts(
        rollout=workspace.rollout,
        ports={fleet: range(port, port + size) for fleet, port in first.items()},
        preview=preview,
        plan=lambda: _without_applied(workspace, runner.preview(engine_options(workspace))),
        up=lambda: runner.up(engine_options(workspace)),
    )
    tried = LocalTrial(
        sandbox=workspace.sandbox,
        settings=settings,
        releases=workspace.releases,
        api_key=preview.api_key,
        marked=preview.marked,
    )
    instances = LocalInstances(hosts=hosts, sandbox=workspace.sandbox, drain_seconds=settings.fleets.drain_seconds)
    return HaproxyBalancer(workspace.sandbox), hosts, tried, instances


def _without_applied(workspace: Workspace, plan: Result) -> Result:
    """Leave out that the state does not know yet what `deploy database` has applied: nothing would be changed by it."""
    from observatory.database import status  # noqa: PLC0415 - psycopg only where it is used

    declared = declared_schema(workspace)
    if declared is None or status(declared["conninfo"], migrations=workspace.migrations).pending:
        return plan
    return replace(plan, steps=tuple(step for step in plan.steps if step.type != SCHEMA_TYPE))


def _on_aws(
    workspace: Workspace, settings: AwsSettings, known: Mapping[str, Any], preview: Preview
) -> tuple[Balancer, Hosts, Trial | None]:
    from observatory.platforms.aws.clients import client  # noqa: PLC0415
    from observatory.platforms.aws.fleets import AlbBalancer, AwsHosts, Fleet  # noqa: PLC0415 - boto3 only where AWS is asked

    if "delivery" not in known:
        raise DeliveryRefusedError(
            f"the stack {workspace.stack!r} was last brought up by an earlier version of this program, and does not "
            "say what its fleets are made of: run `observatory up` first"
        )
    region, told = settings.account.region, known["delivery"]
    balancing = client("elbv2", region)
    fleets = {fleet: Fleet(**told["fleets"][fleet]) for fleet in FLEETS}
    hosts = AwsHosts(
        rollout=rollout_store(workspace, settings),
        scaling=client("autoscaling", region),
        balancing=balancing,
        fleets=fleets,
        preview=preview,
        clock=SystemClock(),
    )
    targets = {fleet: parts.target_group for fleet, parts in fleets.items()}
    return AlbBalancer(client=balancing, rule=told["rule"], target_groups=targets), hosts, None


def administrator(settings: StackSettings, known: Mapping[str, Any]) -> str:
    """Return how the stack's database is reached as superuser; on AWS that is kept in Secrets Manager.

    Raises:
        DeliveryRefusedError: the secret is not to be had.
    """
    from observatory.database.connection import with_database  # noqa: PLC0415 - psycopg only where it is used

    url = str(known["admin_database_url"])
    if settings.platform != "local":
        url = _secret(url, settings.account.region)["url"]
    return with_database(url, settings.database.name)


def _secret(arn: str, region: str) -> dict[str, str]:
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - boto3 only where AWS is asked

    from observatory.platforms.aws.clients import client  # noqa: PLC0415

    try:
        content = client("secretsmanager", region).get_secret_value(SecretId=arn)["SecretString"]
    except (ClientError, BotoCoreError) as error:
        raise DeliveryRefusedError(
            f"{arn} cannot be read: {error}; deliveries look at the database as its administrator, and need the right "
            "to read this secret"
        ) from error
    known: dict[str, str] = json.loads(content)
    return known


@contextlib.contextmanager
def _marked(conninfo: str) -> Iterator[str]:
    """Give the trace id of one verification; what it wrote is removed, and what killed ones left."""
    from observatory.database import connect  # noqa: PLC0415 - psycopg only where it is used
    from observatory.database.verification_rows import marked_rows  # noqa: PLC0415

    with connect(conninfo, purpose="verify a fleet") as connection, marked_rows(connection) as run:
        yield run
