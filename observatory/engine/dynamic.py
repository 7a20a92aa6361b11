"""Serves dynamic resources through the SDK's own host, ``pulumi.dynamic``, over gRPC.

Owns that conversation. Imports the SDK, hence is itself imported only once the host is starting.
"""

from __future__ import annotations

import builtins
import subprocess
import threading
from collections.abc import Callable
from typing import IO, Any, cast

import grpc  # type: ignore[import-untyped]
from pulumi.runtime.proto import provider_pb2 as proto
from pulumi.runtime.proto import provider_pb2_grpc

from observatory.engine.providers import Diff, Provider, ProviderError
from observatory.engine.values import Properties
from observatory.engine.wire import from_struct, to_struct

_START_SECONDS = 60
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 400 * 1024 * 1024),  # as the CLI and the SDK
    ("grpc.enable_http_proxy", 0),
]


class DynamicProvider(Provider):
    """Hosts the program's dynamic providers for one run."""

    def __init__(self, host: subprocess.Popen[bytes], log: Callable[[str], None]) -> None:
        """Take over a host process; ``log`` gets every line that providers print."""
        self._host, self._log = host, log
        self._port = ""
        self._listening = threading.Event()
        self._readers = [self._follow(stream) for stream in (host.stdout, host.stderr) if stream]
        self._connecting = threading.Lock()
        self._channel: grpc.Channel | None = None

    def configure(self, config: Properties) -> None:
        """Pass the stack's configuration to the providers' own ``configure``."""
        self._call("Configure", proto.ConfigureRequest(args=to_struct(config), acceptSecrets=True))

    def check(self, urn: str, olds: Properties, news: Properties) -> tuple[Properties, list[tuple[str, str]]]:
        """See Provider."""
        answer = self._call("Check", proto.CheckRequest(urn=urn, olds=to_struct(olds), news=to_struct(news)))
        return from_struct(answer.inputs), [(failure.property, failure.reason) for failure in answer.failures]

    def diff(self, urn: str, id_: str, inputs: Properties, outputs: Properties, news: Properties) -> Diff:
        """See Provider."""
        request = proto.DiffRequest(
            id=id_, urn=urn, olds=to_struct(outputs), news=to_struct(news), old_inputs=to_struct(inputs)
        )
        answer = self._call("Diff", request)
        return Diff(
            changes={proto.DiffResponse.DIFF_SOME: True, proto.DiffResponse.DIFF_NONE: False}.get(answer.changes),
            replaces=tuple(answer.replaces),
            changed=tuple(answer.diffs),
            delete_before_replace=answer.deleteBeforeReplace,
        )

    def create(self, urn: str, inputs: Properties, timeout: float) -> tuple[str, Properties]:
        """See Provider."""
        answer = self._call("Create", proto.CreateRequest(urn=urn, properties=to_struct(inputs), timeout=timeout))
        if not answer.id:
            raise ProviderError("the provider returned no ID from create")
        return answer.id, from_struct(answer.properties)

    def read(self, urn: str, id_: str, inputs: Properties, outputs: Properties) -> tuple[str, Properties, Properties]:
        """See Provider."""
        request = proto.ReadRequest(id=id_, urn=urn, properties=to_struct(outputs), inputs=to_struct(inputs))
        answer = self._call("Read", request)
        known = from_struct(answer.inputs) if answer.HasField("inputs") else inputs
        return answer.id, from_struct(answer.properties), known

    def update(self, urn: str, id_: str, outputs: Properties, news: Properties, timeout: float) -> Properties:
        """See Provider."""
        request = proto.UpdateRequest(id=id_, urn=urn, olds=to_struct(outputs), news=to_struct(news), timeout=timeout)
        return from_struct(self._call("Update", request).properties)

    def delete(self, urn: str, id_: str, outputs: Properties, timeout: float) -> None:
        """See Provider."""
        self._call("Delete", proto.DeleteRequest(id=id_, urn=urn, properties=to_struct(outputs), timeout=timeout))

    def close(self) -> None:
        """Stop the host, once everything it printed is logged."""
        if self._channel is not None:
            self._channel.close()
        self._host.terminate()
        for reader in self._readers:
            reader.join()

    def _call(self, method: str, request: Any) -> Any:
        try:
            return getattr(self._stub(), method)(request)
        except grpc.RpcError as error:
            call = cast("grpc.Call", error)
            detail = call.details() or ""
            if call.code() is grpc.StatusCode.UNAVAILABLE:
                detail = "the process that hosts the dynamic providers died; its last output is in the log"
            raise ProviderError(_essence(detail), detail) from error

    def _stub(self) -> provider_pb2_grpc.ResourceProviderStub:
        with self._connecting:
            if self._channel is None:
                if not self._listening.wait(_START_SECONDS) or not self._port:
                    raise ProviderError("the process that hosts the dynamic providers did not start; see the log")
                self._channel = grpc.insecure_channel(f"127.0.0.1:{self._port}", options=_CHANNEL_OPTIONS)
                self._api = provider_pb2_grpc.ResourceProviderStub(self._channel)
        return self._api

    def _follow(self, stream: IO[bytes]) -> threading.Thread:
        thread = threading.Thread(target=self._pump, args=(stream,), daemon=True)
        thread.start()
        return thread

    def _pump(self, stream: IO[bytes]) -> None:
        """Take the port from the first line of stdout, and log the rest."""
        for raw in stream:
            line = raw.decode(errors="replace").rstrip()
            if stream is self._host.stdout and not self._port and line.isdigit():
                self._port = line
                self._listening.set()
            elif line:
                self._log(line)
        self._listening.set()


def _essence(detail: str) -> str:
    """Return what a traceback says at its end, without the frames; a plain message unchanged."""
    lines = detail.strip().splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith("  File ")]
    if not frames:
        return detail.strip()
    end = next((number for number in range(frames[-1], len(lines)) if not lines[number].startswith(" ")), frames[-1])
    kind, separator, text = lines[end].partition(": ")
    message = "\n".join([text or kind, *lines[end + 1 :]])
    speaks_for_itself = not hasattr(builtins, kind) or kind in {"Exception", "RuntimeError"}
    return message if separator and speaks_for_itself else "\n".join(lines[end:])
