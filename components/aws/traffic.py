"""The balancers of an AWS stack: the traffic weight of each fleet, and the preview listener.

The service's balancer forwards to both fleets by the weights of the rollout document, and passes only the API and the
two probes. After the first `up` only deployments change the weights, so a checkout with an old document cannot reset
them. Preview traffic has an internal balancer of its own, which forwards to the fleet in `X-Observatory-Fleet`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
from pulumi_aws import lb, route53

from components.aws.buckets import Bucket, BucketArgs
from components.aws.firewall import HTTPS
from components.aws.fleets import Fleet
from components.aws.foundation import Foundation
from components.aws.naming import tags
from observatory.settings import FleetName

MAX_TARGET_GROUPS = 5  # ALB weighted forward
MAX_CONDITION_VALUES = 5  # ALB listener rule, over all its conditions
PUBLIC_PATHS = ("/v1/*", "/health/live", "/health/ready", "/openapi.json")
FLEET_HEADER = "X-Observatory-Fleet"
TLS_POLICY = "ELBSecurityPolicy-TLS13-1-2-2021-06"  # TLS 1.2 and 1.3, as HAProxy on `local`
KEEP_LOGS_DAYS = 90
LOG_WRITER = "logdelivery.elasticloadbalancing.amazonaws.com"


@dataclass(frozen=True, kw_only=True)
class TrafficArgs:
    """The resources that balancers depend on, the fleets, and their traffic weights of the rollout document."""

    base: Foundation
    fleets: Mapping[FleetName, Fleet]
    weights: Mapping[FleetName, int]


class Traffic(pulumi.ComponentResource):
    """The balancers. Outputs: `service_url`, weighted over the fleets; `preview_url`, where a header selects the fleet.

    `rule` is the ARN of the listener's rule; deployments set its weights.
    """

    def __init__(self, name: str, args: TrafficArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:aws:Traffic", name, None, opts)
        self._args = args
        self._child = pulumi.ResourceOptions(parent=self)
        settings, groups, network = args.base.settings, args.base.firewall.groups, args.base.network
        writer = (LOG_WRITER, settings.account.id)
        logs = BucketArgs(stack=args.base.stack, expire_days=KEEP_LOGS_DAYS, log_writer=writer)
        self._logs = Bucket(f"{name}-logs", logs, self._child)

        public = network.private_subnet_ids if settings.traffic.internal else network.public_subnet_ids
        service = self._balancer("service", public, groups["balancer"], internal=settings.traffic.internal)
        listener = self._listener("service", service, _answer("404", '{"error":"not found"}'))
        weighted = lb.ListenerRule(
            "service",
            listener_arn=listener.arn,
            priority=1,
            conditions=[lb.ListenerRuleConditionArgs(path_pattern=_paths(PUBLIC_PATHS))],
            actions=[_weighted(args.fleets, args.weights)],
            tags=tags(args.base.stack, "service"),
            opts=pulumi.ResourceOptions(parent=self, ignore_changes=_weight_paths(len(args.fleets))),
        )
        preview = self._balancer("preview", network.private_subnet_ids, groups["preview"], internal=True)
        self._choose_by_header(preview)

        self.rule = weighted.arn
        self.service_url = self._record("service", settings.traffic.domain, service)
        self.preview_url = self._record("preview", f"preview.{settings.traffic.domain}", preview)
        self.register_outputs({"service_url": self.service_url, "preview_url": self.preview_url})

    def _balancer(
        self, name: str, subnets: Sequence[pulumi.Input[str]], group: pulumi.Input[str], *, internal: bool
    ) -> lb.LoadBalancer:
        return lb.LoadBalancer(
            name,
            load_balancer_type="application",
            internal=internal,
            subnets=list(subnets),
            security_groups=[group],
            drop_invalid_header_fields=True,
            enable_deletion_protection=True,
            access_logs=lb.LoadBalancerAccessLogsArgs(enabled=True, bucket=self._logs.name, prefix=name),
            tags=tags(self._args.base.stack, name),
            opts=pulumi.ResourceOptions(parent=self, depends_on=list(self._logs.ready)),
        )

    def _listener(self, name: str, balancer: lb.LoadBalancer, otherwise: lb.ListenerDefaultActionArgs) -> lb.Listener:
        return lb.Listener(
            name,
            load_balancer_arn=balancer.arn,
            port=HTTPS,
            protocol="HTTPS",
            ssl_policy=TLS_POLICY,
            certificate_arn=self._args.base.settings.traffic.certificate_arn,
            default_actions=[otherwise],
            tags=tags(self._args.base.stack, name),
            opts=self._child,
        )

    def _choose_by_header(self, balancer: lb.LoadBalancer) -> None:
        advice = f'{{"error":"set the header {FLEET_HEADER} to blue or green"}}'
        listener = self._listener("preview", balancer, _answer("400", advice))
        for priority, (fleet, component) in enumerate(self._args.fleets.items(), start=1):
            header = lb.ListenerRuleConditionHttpHeaderArgs(http_header_name=FLEET_HEADER, values=[fleet])
            lb.ListenerRule(
                f"preview-{fleet}",
                listener_arn=listener.arn,
                priority=priority,
                conditions=[lb.ListenerRuleConditionArgs(http_header=header)],
                actions=[lb.ListenerRuleActionArgs(type="forward", target_group_arn=component.preview_group)],
                tags=tags(self._args.base.stack, f"preview-{fleet}", Fleet=fleet),
                opts=self._child,
            )

    def _record(self, name: str, domain: str, balancer: lb.LoadBalancer) -> pulumi.Output[str]:
        """Declare a balancer's DNS record; return its URL."""
        record = route53.Record(
            name,
            zone_id=self._args.base.settings.traffic.hosted_zone_id,
            name=domain,
            type="A",
            aliases=[
                route53.RecordAliasArgs(name=balancer.dns_name, zone_id=balancer.zone_id, evaluate_target_health=False)
            ],
            opts=self._child,
        )
        return pulumi.Output.concat("https://", record.name)


def _weighted(fleets: Mapping[FleetName, Fleet], weights: Mapping[FleetName, int]) -> lb.ListenerRuleActionArgs:
    """Return the action that forwards to each fleet by its weight."""
    if len(fleets) > MAX_TARGET_GROUPS:
        raise ValueError(f"{len(fleets)} fleets: a balancer weighs {MAX_TARGET_GROUPS} target groups")
    targets = [
        lb.ListenerRuleActionForwardTargetGroupArgs(arn=component.target_group, weight=weights[fleet])
        for fleet, component in fleets.items()
    ]
    return lb.ListenerRuleActionArgs(type="forward", forward=lb.ListenerRuleActionForwardArgs(target_groups=targets))


def _weight_paths(fleets: int) -> list[str]:
    return [f"actions[0].forward.targetGroups[{index}].weight" for index in range(fleets)]


def _paths(patterns: Sequence[str]) -> lb.ListenerRuleConditionPathPatternArgs:
    if len(patterns) > MAX_CONDITION_VALUES:
        raise ValueError(f"{len(patterns)} paths: a rule takes {MAX_CONDITION_VALUES} values")
    return lb.ListenerRuleConditionPathPatternArgs(values=list(patterns))


def _answer(status: str, body: str) -> lb.ListenerDefaultActionArgs:
    fixed = lb.ListenerDefaultActionFixedResponseArgs(
        content_type="application/json", status_code=status, message_body=body
    )
    return lb.ListenerDefaultActionArgs(type="fixed-response", fixed_response=fixed)
