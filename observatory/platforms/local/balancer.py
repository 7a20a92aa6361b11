"""The balancer of the local stack: HAProxy's map of traffic weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from observatory.delivery.environment import BalancerError
from observatory.nodes import Paths
from observatory.nodes.haproxy import runtime_socket, weights_file
from observatory.runtime import BalancerUnreachable, LiveMap, Sandbox
from observatory.settings import FleetName

RESTART_SECONDS = 2.0  # until the supervisor has restarted a balancer that died


@dataclass(frozen=True)
class HaproxyBalancer:
    """The traffic weights in HAProxy's map. HAProxy compares with green's weight only, so a change is one step."""

    sandbox: Sandbox

    def weights(self) -> Mapping[FleetName, int]:
        """Return the current traffic weights, in percent.

        Raises:
            BalancerError: HAProxy does not answer.
        """
        with balancer_errors():
            live = self._map.read()
        return {"blue": int(live["blue"]), "green": int(live["green"])}

    def set_weights(self, weights: Mapping[FleetName, int]) -> None:
        """Apply traffic weights, in percent, and write them for HAProxy's next start.

        Raises:
            BalancerError: HAProxy does not answer.
        """
        with balancer_errors():
            self._map.write({fleet: str(weight) for fleet, weight in weights.items()})

    @property
    def _map(self) -> LiveMap:
        file, socket = weights_file(Paths()), runtime_socket(Paths())
        return LiveMap(sandbox=self.sandbox, file=file, socket=socket, patience=RESTART_SECONDS)


@contextlib.contextmanager
def balancer_errors() -> Iterator[None]:
    """Raise BalancerError for a failed exchange with HAProxy."""
    try:
        yield
    except (BalancerUnreachable, OSError) as error:
        raise BalancerError(str(error)) from error
