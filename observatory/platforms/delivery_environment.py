"""The environment of a delivery: what its state machine works with, from the outputs of a stack on any platform."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from observatory.delivery.environment import Environment, Journal
from observatory.platforms.alertmanager import Alertmanager, FleetSilences
from observatory.platforms.clock import SystemClock
from observatory.platforms.monitoring_files import monitoring_files
from observatory.platforms.platform import EngineChoice, Platform
from observatory.platforms.preview import Preview
from observatory.platforms.probes import FleetProbes
from observatory.platforms.prometheus import PrometheusMetrics

if TYPE_CHECKING:
    from observatory.database.verification_rows import MarkedRows


def delivery_environment(
    platform: Platform, outputs: Mapping[str, Any], *, journal: Journal, choice: EngineChoice = "auto"
) -> Environment:
    """Return the environment of deliveries on a stack.

    Args:
        platform: of the stack.
        outputs: of the stack; the secret ones are needed only to verify a fleet and to probe it.
        journal: records every step.
        choice: of the engine that installs a version.

    Raises:
        DeliveryRefusedError: the outputs do not name the fleets' parts.
    """

    def marked_rows() -> AbstractContextManager[MarkedRows]:
        from observatory.database.verification_session import verification_rows  # noqa: PLC0415 - loads psycopg

        return verification_rows(platform.administrator(outputs))

    stack, client = platform.workspace.stack, monitoring_files(platform.workspace).client
    alertmanager = Alertmanager(url=outputs["alertmanager_url"], stack=stack, client=client)
    preview = Preview(url=outputs["preview_url"], marked_rows=marked_rows)
    parts = platform.fleet_parts(outputs, preview, choice)
    return Environment(
        store=platform.rollout_store,
        balancer=parts.balancer,
        hosts=parts.hosts,
        metrics=PrometheusMetrics(
            url=outputs["prometheus_url"],
            stack=stack,
            traffic=platform.traffic,
            client=client,
        ),
        silences=FleetSilences(alertmanager, journal.record),
        clock=SystemClock(),
        journal=journal,
        trial=parts.trial,
        instances=parts.instances,
        probes=FleetProbes(
            preview_url=outputs["preview_url"],
            database=lambda: platform.administrator(outputs),
            instance_url=parts.instance_url,
        ),
        promised=lambda version: platform.release_store.manifest(version).metrics or (),
        limits=platform.settings.delivery.gates,
    )
