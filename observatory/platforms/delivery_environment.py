"""The environment of a delivery: what its state machine works with, from the outputs of a stack on any platform."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
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
        return _marked_rows(platform.administrator(outputs))

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


@contextmanager
def _marked_rows(conninfo: str) -> Iterator[MarkedRows]:
    """Yield the rows of one verification; then remove them and those of verifications that were killed."""
    from observatory.database import connect  # noqa: PLC0415 - psycopg only where it is used
    from observatory.database.connection import describe  # noqa: PLC0415
    from observatory.database.error_translation import translate_errors  # noqa: PLC0415
    from observatory.database.verification_rows import marked_rows  # noqa: PLC0415

    with (
        connect(conninfo, purpose="verify a fleet") as connection,
        translate_errors(describe(conninfo)),
        marked_rows(connection) as rows,
    ):
        yield rows
