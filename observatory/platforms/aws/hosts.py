"""The fleets of a stack on AWS: Auto Scaling groups and their targets.

No launch template names a version: a machine installs at its start the rollout document's version of its fleet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from observatory.delivery.environment import HostsError, RolloutStore
from observatory.platforms.aws.clients import aws_errors
from observatory.platforms.preview import Preview
from observatory.settings import FleetName
from observatory.waiting import Clock, poll

if TYPE_CHECKING:
    from mypy_boto3_autoscaling import AutoScalingClient
    from mypy_boto3_elbv2 import ElasticLoadBalancingv2Client
    from mypy_boto3_elbv2.type_defs import TargetHealthTypeDef

POLL_SECONDS = 5.0  # between two reads of a fleet that is being installed: an instance takes minutes
INSTALL_SECONDS = 30 * 60.0  # for a fleet: two batches of bare machines that install their packages first
CANCEL_SECONDS = 30.0  # for a refresh to end, in a rollback
# Reasons of a target that gives no answer at all: https://docs.aws.amazon.com/elasticloadbalancing/latest/application/target-group-health-checks.html
SILENT = frozenset({"Target.Timeout", "Target.FailedHealthChecks", "Target.NotInUse", "Target.InvalidState"})
REFRESH_UNDER_WAY = ("Pending", "InProgress", "Baking", "Cancelling", "RollbackInProgress")


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The parts of a fleet: the name of its Auto Scaling group, the ARNs of its target groups, its minimum size."""

    group: str
    target_group: str
    preview_group: str
    size: int


@dataclass(frozen=True, kw_only=True)
class AwsHosts:
    """The fleets. Installing a version replaces a fleet's machines: each installs it at its start.

    Attributes:
        rollout: the store of the document that machines read.
        scaling: client of Auto Scaling.
        balancing: client of the load balancers.
        fleets: the parts of each.
        preview: exercises a fleet.
        clock: measures waits.
    """

    rollout: RolloutStore
    scaling: AutoScalingClient = field(repr=False)
    balancing: ElasticLoadBalancingv2Client = field(repr=False)
    fleets: Mapping[FleetName, Fleet]
    preview: Preview
    clock: Clock

    def check(self, fleet: FleetName, *, migrated: bool = False) -> None:
        """Return at once: replacing the machines of a fleet runs no program, and so changes nothing else."""

    def install(self, fleet: FleetName, *, repair: bool = False) -> None:  # noqa: ARG002 - of the protocol
        """Replace a fleet's machines, and return when both balancers report enough ready machines.

        A replacement that is under way started with an earlier document: it is cancelled first.

        Raises:
            HostsError: machines cannot be started, or do not become ready.
        """
        group, deadline = self.fleets[fleet].group, self.clock.now() + INSTALL_SECONDS
        with aws_errors(group, HostsError):
            self._cancel_refreshes(group, deadline)
            # The fleet has no traffic, so all machines may be replaced at once, each new one before its old one stops.
            self._wait_refreshed(group, self._start_refresh(group, healthy=(100, 200)), deadline)
            self._wait_ready(fleet, deadline)

    def silent(self, fleet: FleetName) -> str:
        """Return why no machine of a fleet responds; empty where one does, or its state is not known yet.

        Raises:
            HostsError: AWS does not answer.
        """
        with aws_errors(fleet, HostsError):
            found = self._target_states(self.fleets[fleet].target_group)
        if any(state.get("State") == "healthy" or state.get("Reason") not in SILENT for state in found.values()):
            return ""
        return "; ".join(_described(found)) or "it has no machine"

    def restart(self, fleet: FleetName) -> None:
        """Return at once: Auto Scaling replaces machines that do not respond."""

    def stop(self, fleet: FleetName, *, patient: Callable[[], bool]) -> tuple[str, ...]:  # noqa: ARG002 - of the protocol
        """Start to replace the machines of a fleet by ones with the document's version, old ones first; return none.

        The target group's deregistration delay lets requests in flight end.

        Raises:
            HostsError: AWS does not answer, or the replacement of an earlier document does not end.
        """
        group = self.fleets[fleet].group
        with aws_errors(group, HostsError):
            self._cancel_refreshes(group, self.clock.now() + CANCEL_SECONDS)
            self._start_refresh(group, healthy=(0, 100))
        return ()

    def _start_refresh(self, group: str, *, healthy: tuple[int, int]) -> str:
        """Start to replace the machines of a group; `healthy` is the share that stays, in percent: least and most.

        The balancers report readiness, so there is no warm-up time.
        """
        begun = self.scaling.start_instance_refresh(
            AutoScalingGroupName=group,
            Strategy="Rolling",
            Preferences={
                "MinHealthyPercentage": healthy[0],
                "MaxHealthyPercentage": healthy[1],
                "InstanceWarmup": 0,
                "SkipMatching": False,
                "AutoRollback": False,
            },
        )
        return begun["InstanceRefreshId"]

    def healthy(self, fleet: FleetName) -> bool:
        """Return whether the balancer reports at least the fleet's minimum size of ready instances.

        Raises:
            HostsError: AWS does not answer.
        """
        with aws_errors(fleet, HostsError):
            return not self._unready(self.fleets[fleet].target_group, self.fleets[fleet].size)

    def verify(self, fleet: FleetName) -> None:
        """Exercise a fleet through the preview listener.

        Raises:
            HostsError: another version answers, a write was refused, or a trace cannot be read.
        """
        document = self.rollout.read()
        if document is None:
            raise HostsError("the rollout document is missing, and so is every version of it: restore it from a backup")
        self.preview.verify(fleet, document.fleet(fleet).version)

    def _cancel_refreshes(self, group: str, deadline: float) -> None:
        def pending() -> str:
            under_way = self._refreshes(group, REFRESH_UNDER_WAY)
            if under_way and "Cancelling" not in under_way:
                with contextlib.suppress(self.scaling.exceptions.ActiveInstanceRefreshNotFoundFault):  # it has ended
                    self.scaling.cancel_instance_refresh(AutoScalingGroupName=group)
            return f"{group}: an earlier instance refresh is {', '.join(under_way)}" if under_way else ""

        self._wait(pending, deadline)

    def _refreshes(self, group: str, statuses: tuple[str, ...]) -> list[str]:
        """Return the statuses of a group's recent refreshes that are among `statuses`."""
        answer = self.scaling.describe_instance_refreshes(AutoScalingGroupName=group)
        found = [str(refresh.get("Status")) for refresh in answer["InstanceRefreshes"]]
        return [status for status in found if status in statuses]

    def _wait_refreshed(self, group: str, refresh: str, deadline: float) -> None:
        def pending() -> str:
            answer = self.scaling.describe_instance_refreshes(AutoScalingGroupName=group, InstanceRefreshIds=[refresh])
            (found,) = answer["InstanceRefreshes"]
            status, reason = found.get("Status"), found.get("StatusReason", "no reason given")
            state = f"{group}: instance refresh {refresh} is {status}: {reason}"
            if status not in ("Successful", *REFRESH_UNDER_WAY):
                raise HostsError(state)
            return "" if status == "Successful" else state

        self._wait(pending, deadline)

    def _wait_ready(self, fleet: FleetName, deadline: float) -> None:
        parts = self.fleets[fleet]
        for target_group in (parts.target_group, parts.preview_group):

            def pending(target_group: str = target_group) -> str:
                unready = self._unready(target_group, parts.size)
                return f"{fleet} is installed but not ready: {unready}" if unready else ""

            self._wait(pending, deadline)

    def _unready(self, target_group: str, size: int) -> str:
        """Return which instances are not ready, as text; empty where at least `size` are ready.

        An additional instance that scaling has just started may take minutes and does not count.
        """
        states = self._target_states(target_group)
        ready = [id_ for id_, state in states.items() if state.get("State") == "healthy"]
        if len(ready) >= size:
            return ""
        others = {id_: state for id_, state in states.items() if id_ not in ready}
        return "; ".join([f"{len(ready)} of {size} instances are ready", *_described(others)])

    def _target_states(self, target_group: str) -> dict[str, TargetHealthTypeDef]:
        answer = self.balancing.describe_target_health(TargetGroupArn=target_group)
        return {
            each.get("Target", {}).get("Id", ""): each.get("TargetHealth", {})
            for each in answer["TargetHealthDescriptions"]
        }

    def _wait(self, pending: Callable[[], str], deadline: float) -> None:
        """Wait until `pending` returns no reason to wait."""
        reason = poll(
            pending,
            until=lambda reason: not reason,
            timeout_s=deadline - self.clock.now(),
            interval_s=POLL_SECONDS,
            clock=self.clock,
        )
        if reason:
            raise HostsError(f"timed out after {INSTALL_SECONDS / 60:.0f} minutes: {reason}")


def _described(states: Mapping[str, TargetHealthTypeDef]) -> list[str]:
    return [
        f"{id_} is {state.get('State')} ({state.get('Description', 'no reason given')})"
        for id_, state in states.items()
    ]
