"""What a plan means, in a few lines: how much changes, what is public, protected, single, or still a placeholder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from observatory.engines.embedded import Step
from observatory.operations.plan import Plan
from observatory.settings.placeholders import Placeholder, placeholders
from observatory.settings.reading import ConfigFile
from observatory.workspace import Workspace

ANYWHERE = frozenset({"0.0.0.0/0", "::/0"})
LEFT = frozenset({"create", "update", "replace", "same"})  # operations after which the resource exists
Inputs = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The summary of a plan. Where a resource exists already, only its changed inputs are judged.

    Attributes:
        created: number of new resources by type.
        replaced: names of the resources that are deleted and created again.
        deleted: names of the resources that are deleted.
        public: what the internet can reach, a sentence each.
        protected: names of the resources that no `down` or `up` deletes.
        single: single points of failure, a sentence each.
        placeholders: values of examples that are still in the stack's file.
        contradictions: settings that prevent what others allow, a sentence each.
    """

    created: Mapping[str, int]
    replaced: tuple[str, ...]
    deleted: tuple[str, ...]
    public: tuple[str, ...]
    protected: tuple[str, ...]
    single: tuple[str, ...]
    placeholders: tuple[Placeholder, ...]
    contradictions: tuple[str, ...] = ()


def overview(workspace: Workspace, plan: Plan) -> Overview:
    """Return the summary of a plan of this workspace's stack."""
    file = ConfigFile.read(workspace.config_file)
    steps = {step.urn: step for step in plan.result.steps if step.operation in LEFT}.values()
    inputs = [(step, {change.path: change.new for change in step.changes}) for step in steps]
    return Overview(
        created=dict(Counter(step.type for step in steps if step.operation == "create")),
        replaced=_names(plan, "replace"),
        deleted=_names(plan, "delete"),
        public=tuple(found for step, values in inputs for found in _public(step, values)),
        protected=tuple(sorted(step.name for step in steps if step.protect)),
        single=tuple(found for step, values in inputs if (found := _single(step, values))),
        placeholders=placeholders(file),
        contradictions=tuple(_contradictions(file)),
    )


def _contradictions(file: ConfigFile) -> Iterator[str]:
    """Yield what the settings forbid although they provide for it."""
    delivery = file.values.get("delivery")
    if isinstance(delivery, Mapping) and delivery.get("approval") and not delivery.get("trusted_approvers"):
        changes = " and ".join(map(str, delivery["approval"]))
        yield (
            f"delivery.approval: a {changes} release can never be deployed, because delivery.trusted_approvers has no "
            "key that could approve it"
        )


def _names(plan: Plan, operation: str) -> tuple[str, ...]:
    return tuple(sorted(step.name for step in plan.result.steps if step.operation == operation))


def _public(step: Step, inputs: Inputs) -> Iterator[str]:
    """Yield how the internet can reach a resource."""
    if step.type.endswith(":SecurityGroupIngressRule") and ANYWHERE & {inputs.get("cidrIpv4"), inputs.get("cidrIpv6")}:
        yield f"{step.name}: accepts connections from any address on port {inputs.get('fromPort')}"
    if step.type.endswith("/loadBalancer:LoadBalancer") and inputs.get("internal") is False:
        yield f"{step.name}: the load balancer has public addresses"
    if inputs.get("associatePublicIpAddress") is True or inputs.get("mapPublicIpOnLaunch") is True:
        yield f"{step.name}: machines get public addresses"
    if step.type.endswith(":BucketPublicAccessBlock") and False in inputs.values():
        yield f"{step.name}: the bucket does not block all public access"


# By the end of a resource's type: whether its inputs leave it single, and what fails with it.
SINGLE: Mapping[str, tuple[Callable[[Inputs], bool], str]] = {
    "ec2/instance:Instance": (lambda _inputs: True, "one machine; its failure stops what runs on it"),
    "/replicationGroup:ReplicationGroup": (
        lambda inputs: not inputs.get("automaticFailoverEnabled"),
        "the cache has no failover",
    ),
    "/group:Group": (lambda inputs: inputs.get("minSize") == 1, "the fleet may have a single machine"),
}


def _single(step: Step, inputs: Inputs) -> str | None:
    """Return why a new resource is a single point of failure."""
    for end, (is_single, why) in SINGLE.items():
        if step.operation in {"create", "replace"} and step.type.endswith(end) and is_single(inputs):
            return f"{step.name}: {why}"
    return None
