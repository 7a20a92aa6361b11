"""Runs an in-tree provider as a plugin of the Pulumi CLI: `python -m observatory.engines.providers.server PACKAGE`.

Implements the plugin's side of the protocol (proto/pulumi/provider.proto in Pulumi's source): the port is the first
line of standard output, and the calls are gRPC. The CLI ends the process.
"""

# ruff: noqa: ARG002, N802 - the names and signatures of the protocol

from __future__ import annotations

import contextlib
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from pulumi.runtime.proto import plugin_pb2, provider_pb2_grpc
from pulumi.runtime.proto import provider_pb2 as proto

from observatory.engines.embedded.provider import Provider, ProviderError
from observatory.engines.embedded.wire import from_struct, to_struct
from observatory.engines.providers import IN_TREE

WORKERS = 4
MESSAGE_BYTES = 400 * 1024 * 1024  # as the CLI and the SDK
_EMPTY = empty_pb2.Empty()


class Servicer(provider_pb2_grpc.ResourceProviderServicer):
    """Answers the CLI's calls with the methods of a provider."""

    def __init__(self, provider: Provider, package: str) -> None:
        self._provider, self._package = provider, package

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        """Return the version of the installed Python package."""
        return plugin_pb2.PluginInfo(version=version(f"pulumi-{self._package}"))

    def CheckConfig(self, request: Any, context: Any) -> Any:
        """Accept the provider's inputs."""
        return proto.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: Any, context: Any) -> Any:
        """Report a change as an update: another connection to the same server replaces nothing."""
        changed = from_struct(request.old_inputs) != from_struct(request.news)
        return proto.DiffResponse(changes=_diff_kind(changes=changed))

    def Configure(self, request: Any, context: Any) -> Any:
        """Configure the provider."""
        self._provider.configure(from_struct(request.args))
        return proto.ConfigureResponse(acceptSecrets=False, supportsPreview=True)

    def Check(self, request: Any, context: Any) -> Any:
        """See Provider."""
        inputs, failures = self._call(
            context, lambda: self._provider.check(request.urn, from_struct(request.olds), from_struct(request.news))
        )
        messages = [proto.CheckFailure(property=name, reason=reason) for name, reason in failures]
        return proto.CheckResponse(inputs=to_struct(inputs), failures=messages)

    def Diff(self, request: Any, context: Any) -> Any:
        """See Provider."""
        values = [from_struct(each) for each in (request.old_inputs, request.olds, request.news)]
        diff = self._call(context, lambda: self._provider.diff(request.urn, request.id, *values))
        return proto.DiffResponse(
            changes=_diff_kind(changes=diff.changes),
            replaces=diff.replaces,
            diffs=diff.changed,
            deleteBeforeReplace=diff.delete_before_replace,
        )

    def Create(self, request: Any, context: Any) -> Any:
        """See Provider; a preview changes nothing."""
        inputs = from_struct(request.properties)
        if request.preview:
            return proto.CreateResponse(id="", properties=to_struct(inputs))
        id_, outputs = self._call(context, lambda: self._provider.create(request.urn, inputs, request.timeout))
        return proto.CreateResponse(id=id_, properties=to_struct(outputs))

    def Read(self, request: Any, context: Any) -> Any:
        """See Provider."""
        values = [from_struct(each) for each in (request.inputs, request.properties)]
        id_, outputs, inputs = self._call(context, lambda: self._provider.read(request.urn, request.id, *values))
        return proto.ReadResponse(id=id_, properties=to_struct(outputs), inputs=to_struct(inputs))

    def Update(self, request: Any, context: Any) -> Any:
        """See Provider; a preview changes nothing."""
        news = from_struct(request.news)
        if request.preview:
            return proto.UpdateResponse(properties=to_struct(news))
        outputs = self._call(
            context,
            lambda: self._provider.update(request.urn, request.id, from_struct(request.olds), news, request.timeout),
        )
        return proto.UpdateResponse(properties=to_struct(outputs))

    def Delete(self, request: Any, context: Any) -> Any:
        """See Provider."""
        outputs = from_struct(request.properties)
        self._call(context, lambda: self._provider.delete(request.urn, request.id, outputs, request.timeout))
        return _EMPTY

    def Cancel(self, request: Any, context: Any) -> Any:
        """Accept: calls in flight finish."""
        return _EMPTY

    def _call(self, context: Any, call: Any) -> Any:
        try:
            return call()
        except ProviderError as error:
            context.abort(grpc.StatusCode.UNKNOWN, str(error))


def _diff_kind(*, changes: bool | None) -> Any:
    if changes is None:
        return proto.DiffResponse.DIFF_UNKNOWN
    return proto.DiffResponse.DIFF_SOME if changes else proto.DiffResponse.DIFF_NONE


def main(package: str) -> None:
    """Serve a package's provider until the process is interrupted."""
    limits = [("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.max_send_message_length", MESSAGE_BYTES)]
    server = grpc.server(ThreadPoolExecutor(WORKERS), options=limits)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(Servicer(IN_TREE[package](), package), server)
    port = server.add_insecure_port("127.0.0.1:0")
    with contextlib.suppress(KeyboardInterrupt):  # the CLI ends its plugins so, as soon as they answer
        server.start()
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()
        server.wait_for_termination()


if __name__ == "__main__":
    main(sys.argv[1])
