"""The resource monitor and the engine that the SDK calls, in this process.

Translates the SDK's requests (proto/pulumi/resource.proto and engine.proto in Pulumi's source) into calls of
``deployment``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn, cast

from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]
from pulumi.runtime.proto import alias_pb2, engine_pb2, resource_pb2

from observatory.engines.embedded.deployment import Deployment, Goal
from observatory.engines.embedded.errors import ProgramError, UnsupportedError
from observatory.engines.embedded.events import Emitter, Severity
from observatory.engines.embedded.provider import INTERNAL_KEY, PROVIDER_TYPE
from observatory.engines.embedded.snapshot import State
from observatory.engines.embedded.values import Properties
from observatory.engines.embedded.wire import from_struct, to_struct

_EMPTY = empty_pb2.Empty()
# What the SDK may send. Transforms and hooks are included so that their requests arrive and are refused by name.
_FEATURES = (
    "SECRETS", "RESOURCE_REFERENCES", "ALIAS_SPECS", "DELETED_WITH", "REPLACE_WITH", "PARAMETERIZATION", "TRANSFORMS",
    "INVOKE_TRANSFORMS", "RESOURCE_HOOKS", "ERROR_HOOKS",
)  # fmt: skip
_DURATION = re.compile(r"([\d.]+)(ns|us|µs|ms|s|m|h)")  # Go's time.ParseDuration
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_REFUSED = {
    "importId": "import_",
    "transforms": "transforms",
    "state_migrations": "state_migrations",
    "remote": "remote (a multi-language component)",
    "hooks": "hooks",
    "replacement_trigger": "replacement_trigger",
    "hideDiffs": "hide_diffs",
    "envVarMappings": "env_var_mappings",
}
_UNKNOWN_RESULT = (
    "the result of {} is unknown in an offline plan; use the function's form named ..._output, which returns an "
    "Output, or plan with the Pulumi CLI"
)


class Monitor:
    """Answers the SDK's resource monitor calls; they arrive on several threads at once."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def GetDeploymentInfo(self, _: Any) -> resource_pb2.DeploymentInfo:  # noqa: N802
        """Return the features that the SDK may use."""
        features = [resource_pb2.ResourceMonitorFeature.Value(f"RESOURCE_MONITOR_FEATURE_{name}") for name in _FEATURES]
        return resource_pb2.DeploymentInfo(supportedFeatures=features)

    def RegisterResource(self, request: resource_pb2.RegisterResourceRequest) -> resource_pb2.RegisterResourceResponse:  # noqa: N802
        """Register one resource."""
        for name, option in _REFUSED.items():
            value = getattr(request, name, None)
            if value.ByteSize() if isinstance(value, Message) else value:
                self._refuse(f"the option `{option}` of {request.type} {request.name!r}")
        delete_first = request.deleteBeforeReplace if request.deleteBeforeReplaceDefined else None
        goal = Goal(state=self._state(request), delete_before_replace=delete_first, aliases=self._aliases(request))
        state = self._deployment.register(goal)
        outputs = to_struct(state["outputs"] if state["custom"] else {})
        return resource_pb2.RegisterResourceResponse(urn=state.urn, id=state["id"], object=outputs)

    def RegisterResourceOutputs(self, request: resource_pb2.RegisterResourceOutputsRequest) -> empty_pb2.Empty:  # noqa: N802
        """Set a component's outputs."""
        self._deployment.register_outputs(request.urn, _properties(request.outputs, f"outputs of {_name(request.urn)}"))
        return _EMPTY

    def RegisterPackage(self, request: resource_pb2.RegisterPackageRequest) -> resource_pb2.RegisterPackageResponse:  # noqa: N802
        """Accept a package; its first resource is refused if there is no provider for it."""
        return resource_pb2.RegisterPackageResponse(ref=f"{request.name}@{request.version}")

    def SignalAndWaitForShutdown(self, _: Any) -> empty_pb2.Empty:  # noqa: N802
        """Return at once: nothing here calls back into the program."""
        return _EMPTY

    def Invoke(self, request: resource_pb2.ResourceInvokeRequest) -> resource_pb2.ResourceInvokeResponse:  # noqa: N802
        """Return an unknown result in an offline plan; otherwise refuse the provider function."""
        if not self._deployment.offline:
            self._refuse(f"a provider function (invoke) {request.tok}")
        self._deployment.emit.warn(_UNKNOWN_RESULT.format(request.tok))
        return resource_pb2.ResourceInvokeResponse(unknown=True)

    def __getattr__(self, call: str) -> Callable[[Any], NoReturn]:
        """Refuse every other call by name."""

        def refuse(request: Any) -> NoReturn:
            words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", call).lower()
            subject = [getattr(request, field, "") for field in ("tok", "type", "name")]
            self._refuse(f"to {words} {' '.join(filter(None, subject))}".strip())

        return refuse

    def _refuse(self, feature: str) -> NoReturn:
        error = UnsupportedError(feature)
        self._deployment.stop(error)
        raise error

    def _state(self, request: resource_pb2.RegisterResourceRequest) -> State:
        timeouts = request.customTimeouts.ListFields()
        return State(
            {
                "urn": self._deployment.urn(request.type, request.name, request.parent),
                "type": request.type,
                "custom": request.custom,
                "inputs": _inputs(request),
                "parent": request.parent,
                "protect": request.protect,
                "provider": request.provider,
                "dependencies": sorted(request.dependencies),
                "propertyDependencies": {key: sorted(d.urns) for key, d in request.propertyDependencies.items()},
                "additionalSecretOutputs": list(request.additionalSecretOutputs),
                "customTimeouts": {field.name: _seconds(value) for field, value in timeouts},
                "retainOnDelete": request.retainOnDelete,
                "deletedWith": request.deletedWith,
                "replaceWith": list(request.replace_with),
                "ignoreChanges": list(request.ignoreChanges),
                "replaceOnChanges": list(request.replaceOnChanges),
            }
        )

    def _aliases(self, request: resource_pb2.RegisterResourceRequest) -> tuple[str, ...]:
        """Return the URNs that the resource may have had: its own aliases, then those from its parent's aliases."""
        own = [self._alias(alias, request) for alias in request.aliases] + list(request.aliasURNs)
        former = self._deployment.former_urn(request.parent)
        if former == request.parent:
            return tuple(own)
        name, former_name, inherited = _name(request.parent), _name(former), []
        for urn in (self._deployment.urn(request.type, request.name, request.parent), *own):
            type_, own_name = urn.split("::")[2].rpartition("$")[2], _name(urn)
            renamed = former_name + own_name.removeprefix(name) if own_name.startswith(name) else own_name
            inherited.append(self._deployment.urn(type_, renamed, former))
        return (*own, *inherited)

    def _alias(self, alias: alias_pb2.Alias, request: resource_pb2.RegisterResourceRequest) -> str:
        if alias.WhichOneof("alias") == "urn":
            return str(alias.urn)
        spec = alias.spec
        parent = self._deployment.former_urn(spec.parentUrn) if spec.parentUrn else request.parent
        type_, name = spec.type or request.type, spec.name or request.name
        parent = "" if spec.noParent else parent
        return self._deployment.urn(type_, name, parent, stack=spec.stack, project=spec.project)


class Engine:
    """Answers the SDK's engine calls, which are messages."""

    def __init__(self, emit: Emitter) -> None:
        self._emit = emit

    def Log(self, request: engine_pb2.LogRequest) -> empty_pb2.Empty:  # noqa: N802
        """Emit a message."""
        severity = cast("Severity", engine_pb2.LogSeverity.Name(request.severity).lower())
        if severity != "debug" or request.urn:  # the SDK logs a dozen debug lines for each of its calls
            self._emit.message(request.message.rstrip(), severity, request.urn)
        return _EMPTY

    def RequirePulumiVersion(self, request: Any) -> NoReturn:  # noqa: N802
        """Refuse: there is no CLI whose version could be checked."""
        raise UnsupportedError(f"require_pulumi_version({request.pulumi_version_range!r})")


def _properties(message: Message, what: str) -> Properties:
    try:
        return from_struct(message)
    except ValueError as error:
        raise ProgramError(f"{what}: {error}") from error


def _inputs(request: resource_pb2.RegisterResourceRequest) -> Properties:
    """Return a resource's inputs; those of a provider include the version of its plugin, as in the CLI."""
    inputs = _properties(request.object, f"inputs of {request.name}")
    if request.type.startswith(PROVIDER_TYPE) and request.version:
        return {**inputs, INTERNAL_KEY: {}, "version": request.version}
    return inputs


def _name(urn: str) -> str:
    return urn.rpartition("::")[2]


def _seconds(duration: str) -> float:
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(duration))
