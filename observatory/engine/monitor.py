"""The resource monitor and engine objects that the SDK talks to, in-process.

Owns the translation of the SDK's requests (proto/pulumi/resource.proto and engine.proto in Pulumi's source). What
they mean is ``deployment``'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn

from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]
from pulumi.runtime.proto import alias_pb2, engine_pb2, resource_pb2

from observatory.engine.deployment import Deployment, Goal
from observatory.engine.errors import UnsupportedError
from observatory.engine.plan import DiagnosticEvent, Event, Severity
from observatory.engine.providers import INTERNAL_KEY, PROVIDER_TYPE
from observatory.engine.snapshot import ResourceState
from observatory.engine.values import Properties
from observatory.engine.wire import from_struct, to_struct

_EMPTY = empty_pb2.Empty()
# What the SDK may send. Transforms and hooks are among them so that they arrive here and are refused by name.
_FEATURES = (
    "secrets", "resourceReferences", "aliasSpecs", "deletedWith", "replaceWith", "parameterization", "transforms",
    "invokeTransforms", "resourceHooks", "errorHooks",
)  # fmt: skip
_SEVERITIES: dict[int, Severity] = {
    engine_pb2.DEBUG: "debug",
    engine_pb2.INFO: "info",
    engine_pb2.WARNING: "warning",
    engine_pb2.ERROR: "error",
}
_DURATION = re.compile(r"([\d.]+)(ns|us|µs|ms|s|m|h)")  # Go's time.ParseDuration
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_REFUSED_FIELDS = {
    "importId": "the `import_` option",
    "transforms": "the `transforms` option",
    "state_migrations": "the `state_migrations` option",
    "remote": "a remote component (a multi-language package)",
    "hooks": "the `hooks` option",
    "replacement_trigger": "the `replacement_trigger` option",
}
_ASKED = (
    "the result of {} is unknown here, since this plan asks no provider; a program that needs it plain, and not as "
    "an Output (the function's form named ..._output), can be planned by the Pulumi CLI only"
)
_REFUSED_CALLS = {
    "Call": "a provider method (call)",
    "RegisterStackTransform": "a stack transform",
    "RegisterStackInvokeTransform": "an invoke transform",
    "RegisterResourceHook": "a resource hook",
    "RegisterErrorHook": "an error hook",
}


class Monitor:
    """Answers the SDK's resource monitor calls; they arrive on several threads at once."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def GetDeploymentInfo(self, _: Any) -> resource_pb2.DeploymentInfo:  # noqa: N802
        """Tell what the SDK may send."""
        names = [f"RESOURCE_MONITOR_FEATURE_{_upper_snake(name)}" for name in _FEATURES]
        return resource_pb2.DeploymentInfo(supportedFeatures=[getattr(resource_pb2, name) for name in names])

    def SupportsFeature(self, request: resource_pb2.SupportsFeatureRequest) -> resource_pb2.SupportsFeatureResponse:  # noqa: N802
        """Tell whether the SDK may send a feature (how SDKs before GetDeploymentInfo ask)."""
        return resource_pb2.SupportsFeatureResponse(hasSupport=request.id in _FEATURES)

    def RegisterResource(self, request: resource_pb2.RegisterResourceRequest) -> resource_pb2.RegisterResourceResponse:  # noqa: N802
        """Bring one resource about."""
        state = self._deployment.register(self._goal(request))
        return resource_pb2.RegisterResourceResponse(
            urn=state.urn,
            id=state.id,
            object=to_struct(state.outputs if state.custom else {}),
        )

    def RegisterResourceOutputs(self, request: resource_pb2.RegisterResourceOutputsRequest) -> empty_pb2.Empty:  # noqa: N802
        """Set a component's outputs."""
        self._deployment.register_outputs(request.urn, from_struct(request.outputs))
        return _EMPTY

    def RegisterPackage(self, request: resource_pb2.RegisterPackageRequest) -> resource_pb2.RegisterPackageResponse:  # noqa: N802
        """Name a package; whether anything serves it shows when a resource asks for it."""
        return resource_pb2.RegisterPackageResponse(ref=f"{request.name}@{request.version}")

    def SignalAndWaitForShutdown(self, _: Any) -> empty_pb2.Empty:  # noqa: N802
        """Let the program end: nothing here calls back into it."""
        return _EMPTY

    def Invoke(self, request: resource_pb2.ResourceInvokeRequest) -> resource_pb2.ResourceInvokeResponse:  # noqa: N802
        """Leave a provider function's result unknown in a plan without providers; else refuse."""
        if not self._deployment.offline:
            self._refuse(f"a provider function (invoke) {request.tok}")
        self._deployment.warn(_ASKED.format(request.tok))
        return resource_pb2.ResourceInvokeResponse(unknown=True)

    def ReadResource(self, request: resource_pb2.ReadResourceRequest) -> NoReturn:  # noqa: N802
        """Refuse to read what the stack does not own."""
        reference = request.type == "pulumi:pulumi:StackReference"
        self._refuse("StackReference" if reference else f"reading an existing resource ({request.type}.get)")

    def __getattr__(self, call: str) -> Callable[[Any], NoReturn]:
        """Refuse every other call by name."""

        def refuse(request: Any) -> NoReturn:
            subject = getattr(request, "tok", "") or getattr(request, "name", "")
            self._refuse(f"{_REFUSED_CALLS.get(call, call)} {subject}".strip())

        return refuse

    def _refuse(self, feature: str) -> NoReturn:
        error = UnsupportedError(feature)
        self._deployment.stop(error)
        raise error

    def _goal(self, request: resource_pb2.RegisterResourceRequest) -> Goal:
        for name, feature in _REFUSED_FIELDS.items():
            value = getattr(request, name, None)
            if value.ByteSize() if isinstance(value, Message) else value:
                self._refuse(f"{feature} of {request.type} {request.name!r}")
        timeouts = request.customTimeouts
        state = ResourceState(
            urn=self._deployment.urn(request.type, request.name, request.parent),
            type=request.type,
            custom=request.custom,
            inputs=_inputs(request),
            parent=request.parent,
            protect=request.protect,
            provider=request.provider,
            dependencies=sorted(request.dependencies),
            property_dependencies={key: sorted(d.urns) for key, d in request.propertyDependencies.items()},
            additional_secret_outputs=list(request.additionalSecretOutputs),
            custom_timeouts={field.name: _seconds(value) for field, value in timeouts.ListFields()},
            retain_on_delete=request.retainOnDelete,
            deleted_with=request.deletedWith,
            replace_with=list(request.replace_with),
            ignore_changes=list(request.ignoreChanges),
            replace_on_changes=list(request.replaceOnChanges),
        )
        chosen = request.deleteBeforeReplace if request.deleteBeforeReplaceDefined else None
        return Goal(state=state, delete_before_replace=chosen, aliases=self._aliases(request))

    def _aliases(self, request: resource_pb2.RegisterResourceRequest) -> tuple[str, ...]:
        """Return the URNs that the resource may have had: its own aliases, then those its parent's alias gives it."""
        own = [self._alias(alias, request) for alias in request.aliases] + list(request.aliasURNs)
        names = [(request.type, request.name), *((urn.split("::")[2].split("$")[-1], _name(urn)) for urn in own)]
        inherited = [self._deployment.inherited_alias(request.parent, type_, name) for type_, name in names]
        return tuple(dict.fromkeys(urn for urn in (*own, *inherited) if urn))

    def _alias(self, alias: alias_pb2.Alias, request: resource_pb2.RegisterResourceRequest) -> str:
        if alias.WhichOneof("alias") == "urn":
            return alias.urn
        spec = alias.spec
        parent = self._deployment.alias_of(spec.parentUrn) if spec.parentUrn else request.parent
        return self._deployment.urn(
            spec.type or request.type,
            spec.name or request.name,
            "" if spec.noParent else parent,
            stack=spec.stack,
            project=spec.project,
        )


class Engine:
    """Answers the SDK's engine calls: messages, and nothing else."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit

    def Log(self, request: engine_pb2.LogRequest) -> empty_pb2.Empty:  # noqa: N802
        """Pass a message on."""
        severity = _SEVERITIES[request.severity]
        if severity != "debug" or request.urn:  # the SDK logs a dozen lines on each of its own calls
            self._emit(DiagnosticEvent(severity=severity, message=request.message.rstrip(), urn=request.urn))
        return _EMPTY

    def RequirePulumiVersion(self, request: Any) -> NoReturn:  # noqa: N802
        """Refuse: there is no CLI here whose version could satisfy the program."""
        raise UnsupportedError(f"require_pulumi_version({request.pulumi_version_range!r})")


def _inputs(request: resource_pb2.RegisterResourceRequest) -> Properties:
    """Return a resource's inputs; those of a provider that the program makes name its plugin too, as the CLI's do."""
    inputs = from_struct(request.object)
    if request.type.startswith(PROVIDER_TYPE) and request.version:
        return {**inputs, INTERNAL_KEY: {}, "version": request.version}
    return inputs


def _name(urn: str) -> str:
    return urn.rpartition("::")[2]


def _upper_snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()


def _seconds(duration: str) -> float:
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(duration))
