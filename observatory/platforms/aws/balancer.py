"""The balancer of a stack on AWS: the weighted target groups of a listener's rule.

The program sets the weights at the first `up` only; from then on deliveries set them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from observatory.delivery.environment import BalancerError
from observatory.documents.rollout import TOTAL_WEIGHT
from observatory.platforms.aws.clients import aws_errors
from observatory.settings import FleetName

if TYPE_CHECKING:
    from mypy_boto3_elbv2 import ElasticLoadBalancingv2Client
    from mypy_boto3_elbv2.type_defs import ActionOutputTypeDef, RuleTypeDef


@dataclass(frozen=True, kw_only=True)
class AlbBalancer:
    """The traffic weights of the target groups in a listener's rule.

    A weight is the fleet's percentage: the balancer takes 0 to 999, and divides by their sum.

    Attributes:
        client: of the load balancers.
        rule: ARN of the rule that forwards to the fleets.
        target_groups: ARN of each fleet's target group.
    """

    client: ElasticLoadBalancingv2Client = field(repr=False)
    rule: str
    target_groups: Mapping[FleetName, str]

    def weights(self) -> Mapping[FleetName, int]:
        """Return the current traffic weights, in percent.

        Raises:
            BalancerError: AWS does not answer, or the rule forwards to a target group that is no fleet's.
        """
        live = {
            group.get("TargetGroupArn", ""): group.get("Weight", 0)
            for group in _forward(self._rule())["ForwardConfig"].get("TargetGroups", ())
        }
        total = sum(live.values())
        if foreign := [arn for arn in live if live[arn] and arn not in self.target_groups.values()]:
            raise BalancerError(
                f"{self.rule} forwards to {', '.join(foreign)}, which is no fleet's target group: find out who "
                "changed the rule"
            )
        if not total:
            raise BalancerError(f"{self.rule} sends no traffic to any fleet: find out who changed the rule")
        return {fleet: round(live.get(arn, 0) * TOTAL_WEIGHT / total) for fleet, arn in self.target_groups.items()}

    def set_weights(self, weights: Mapping[FleetName, int]) -> None:
        """Apply traffic weights, in percent, in one step; the rule's conditions, stickiness and other actions stay.

        Raises:
            BalancerError: AWS does not answer.
        """
        rule = self._rule()
        forward = _forward(rule)
        forward["ForwardConfig"]["TargetGroups"] = [
            {"TargetGroupArn": self.target_groups[fleet], "Weight": weight} for fleet, weight in weights.items()
        ]
        forward.pop("TargetGroupArn", None)  # the short form for a single group
        with aws_errors(self.rule, BalancerError):
            self.client.modify_rule(RuleArn=self.rule, Actions=rule["Actions"])

    def _rule(self) -> RuleTypeDef:
        with aws_errors(self.rule, BalancerError):
            (rule,) = self.client.describe_rules(RuleArns=[self.rule])["Rules"]
        return rule


def _forward(rule: RuleTypeDef) -> ActionOutputTypeDef:
    """Return the rule's action that forwards to target groups."""
    for action in rule.get("Actions", []):
        if action.get("ForwardConfig", {}).get("TargetGroups"):
            return action
    raise BalancerError(f"{rule.get('RuleArn')} does not forward to target groups: run `observatory up`")
