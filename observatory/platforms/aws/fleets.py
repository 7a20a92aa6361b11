"""A stack on AWS, as deliveries see it: the load balancer's rule, Auto Scaling groups, their targets.

Nothing here changes what the program declares: weights are set by the first `up` and left to deliveries after, and a
version is in no launch template, since a machine installs at its start what the rollout document says of its fleet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from observatory.delivery.environment import BalancerError, Clock, HostsError, RolloutStore
from observatory.documents.rollout import TOTAL_WEIGHT
from observatory.platforms.preview import Preview
from observatory.settings import FleetName

if TYPE_CHECKING:
    from mypy_boto3_autoscaling import AutoScalingClient
    from mypy_boto3_elbv2 import ElasticLoadBalancingv2Client
    from mypy_boto3_elbv2.type_defs import ActionOutputTypeDef, RuleTypeDef

LOOK_SECONDS = 5.0  # between two looks at a fleet that is being installed: an instance takes minutes
INSTALL_SECONDS = 30 * 60.0  # for a fleet: two batches of bare machines that install their packages first
REFRESH_UNDER_WAY = ("Pending", "InProgress", "Baking", "Cancelling", "RollbackInProgress")


@dataclass(frozen=True, kw_only=True)
class AlbBalancer:
    """The traffic's division by the weighted target groups of a listener's rule.

    A weight is the fleet's percentage: the balancer takes 0 to 999, and divides by their sum.

    Attributes:
        client: of the load balancers.
        rule: ARN of the rule that forwards to the fleets.
        target_groups: ARN of each fleet's.
    """

    client: ElasticLoadBalancingv2Client = field(repr=False)
    rule: str
    target_groups: Mapping[FleetName, str]

    def weights(self) -> Mapping[FleetName, int]:
        """Return the percentages in force.

        Raises:
            BalancerError: AWS cannot be asked, or the rule forwards to others than the fleets.
        """
        live = {
            group.get("TargetGroupArn", ""): group.get("Weight", 0)
            for group in _forward(self._rule())["ForwardConfig"].get("TargetGroups", ())
        }
        total = sum(live.values())
        if strangers := [arn for arn in live if live[arn] and arn not in self.target_groups.values()]:
            raise BalancerError(
                f"{self.rule} forwards to {', '.join(strangers)}, which no fleet of the stack has: find out who "
                "changed it"
            )
        if not total:
            raise BalancerError(f"{self.rule} gives no fleet any traffic: find out who changed it")
        return {fleet: round(live.get(arn, 0) * TOTAL_WEIGHT / total) for fleet, arn in self.target_groups.items()}

    def set_weights(self, weights: Mapping[FleetName, int]) -> None:
        """Put percentages in force, in one step; the rule's conditions, stickiness and other actions stay.

        Raises:
            BalancerError: AWS cannot be asked.
        """
        rule = self._rule()
        forward = _forward(rule)
        forward["ForwardConfig"]["TargetGroups"] = [
            {"TargetGroupArn": self.target_groups[fleet], "Weight": weight} for fleet, weight in weights.items()
        ]
        forward.pop("TargetGroupArn", None)  # another way to say the same, for one group alone
        with _asking(self.rule, BalancerError):
            self.client.modify_rule(RuleArn=self.rule, Actions=rule["Actions"])

    def _rule(self) -> RuleTypeDef:
        with _asking(self.rule, BalancerError):
            (rule,) = self.client.describe_rules(RuleArns=[self.rule])["Rules"]
        return rule


def _forward(rule: RuleTypeDef) -> ActionOutputTypeDef:
    """Return the action that forwards to target groups, with the groups spelled out."""
    for action in rule.get("Actions", []):
        if action.get("ForwardConfig", {}).get("TargetGroups"):
            return action
    raise BalancerError(f"{rule.get('RuleArn')} does not forward to target groups: `observatory up` declares it")


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What a fleet is made of: its Auto Scaling group by name, the ARNs of its target groups, its least size."""

    group: str
    target_group: str
    preview_group: str
    size: int


@dataclass(frozen=True, kw_only=True)
class AwsHosts:
    """The fleets: installing a version replaces a fleet's machines, since each installs it at its start.

    Attributes:
        rollout: the document that machines read.
        scaling: client of Auto Scaling.
        balancing: client of the load balancers.
        fleets: what each is made of.
        preview: exercises a fleet.
        clock: to wait by.
    """

    rollout: RolloutStore
    scaling: AutoScalingClient = field(repr=False)
    balancing: ElasticLoadBalancingv2Client = field(repr=False)
    fleets: Mapping[FleetName, Fleet]
    preview: Preview
    clock: Clock

    def install(self, fleet: FleetName) -> None:
        """Replace a fleet's machines, and return when both balancers see enough new ones ready.

        A replacement that is under way began with another document: it is ended first.

        Raises:
            HostsError: machines cannot be had, or do not get ready.
        """
        group, deadline = self.fleets[fleet].group, self.clock.now() + INSTALL_SECONDS
        with _asking(group, HostsError):
            self._end_refresh(group, deadline)
            # Without traffic nothing is lost by machines that are replaced all at once, a new one before an old one;
            # and the balancers, not a time to warm up, say when they are ready.
            begun = self.scaling.start_instance_refresh(
                AutoScalingGroupName=group,
                Strategy="Rolling",
                Preferences={
                    "MinHealthyPercentage": 100,
                    "MaxHealthyPercentage": 200,
                    "InstanceWarmup": 0,
                    "SkipMatching": False,
                    "AutoRollback": False,
                },
            )
            self._wait_refreshed(group, begun["InstanceRefreshId"], deadline)
            self._wait_ready(fleet, deadline)

    def healthy(self, fleet: FleetName) -> bool:
        """Tell whether the balancer sees as many ready instances of a fleet as there must always be.

        Raises:
            HostsError: AWS cannot be asked.
        """
        with _asking(fleet, HostsError):
            return not self._unready(self.fleets[fleet].target_group, self.fleets[fleet].size)

    def verify(self, fleet: FleetName) -> None:
        """Exercise a fleet through the preview listener.

        Raises:
            HostsError: another version answers, a trace was refused or did not come back.
        """
        document = self.rollout.read()
        if document is None:
            raise HostsError("the rollout document is gone")
        self.preview.verify(fleet, document.fleet(fleet).version)

    def _end_refresh(self, group: str, deadline: float) -> None:
        while under_way := self._refreshes(group, REFRESH_UNDER_WAY):
            if "Cancelling" not in under_way:
                with contextlib.suppress(self.scaling.exceptions.ActiveInstanceRefreshNotFoundFault):  # it has ended
                    self.scaling.cancel_instance_refresh(AutoScalingGroupName=group)
            self._wait(deadline, f"{group}: an earlier instance refresh does not end ({', '.join(under_way)})")

    def _refreshes(self, group: str, statuses: tuple[str, ...]) -> list[str]:
        """Return the statuses of those last refreshes of a group that are in one of `statuses`."""
        answer = self.scaling.describe_instance_refreshes(AutoScalingGroupName=group)
        found = [str(refresh.get("Status")) for refresh in answer["InstanceRefreshes"]]
        return [status for status in found if status in statuses]

    def _wait_refreshed(self, group: str, refresh: str, deadline: float) -> None:
        while True:
            answer = self.scaling.describe_instance_refreshes(AutoScalingGroupName=group, InstanceRefreshIds=[refresh])
            (found,) = answer["InstanceRefreshes"]
            status, reason = found.get("Status"), found.get("StatusReason", "no reason given")
            if status == "Successful":
                return
            if status not in REFRESH_UNDER_WAY:
                raise HostsError(f"{group}: instance refresh {refresh} is {status}: {reason}")
            self._wait(deadline, f"{group}: instance refresh {refresh} is {status}: {reason}")

    def _wait_ready(self, fleet: FleetName, deadline: float) -> None:
        parts = self.fleets[fleet]
        for target_group in (parts.target_group, parts.preview_group):
            while unready := self._unready(target_group, parts.size):
                self._wait(deadline, f"{fleet} is installed and not ready: {unready}")

    def _unready(self, target_group: str, size: int) -> str:
        """Return in words what is not ready of the instances that there must always be; nothing when all is well.

        One more that scaling has started, and that is not ready for minutes, is no reason to stop.
        """
        answer = self.balancing.describe_target_health(TargetGroupArn=target_group)
        states = {
            each.get("Target", {}).get("Id", ""): each.get("TargetHealth", {})
            for each in answer["TargetHealthDescriptions"]
        }
        ready = [id_ for id_, state in states.items() if state.get("State") == "healthy"]
        if len(ready) >= size:
            return ""
        others = [
            f"{id_} is {state.get('State')} ({state.get('Description', 'no reason given')})"
            for id_, state in states.items()
            if id_ not in ready
        ]
        return "; ".join([f"{len(ready)} of {size} instances are ready", *others])

    def _wait(self, deadline: float, why_not: str) -> None:
        if self.clock.now() > deadline:
            raise HostsError(f"given up after {INSTALL_SECONDS / 60:.0f} minutes: {why_not}")
        self.clock.sleep(LOOK_SECONDS)


@contextlib.contextmanager
def _asking(place: str, kind: type[Exception]) -> Iterator[None]:
    """Say of every answer that is none where it was asked for."""
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise kind(f"{place}: {error}") from error
