"""The provider of dynamic resources: runs the SDK's own host, ``pulumi.dynamic``, and calls it over gRPC."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from observatory.engines.embedded.provider import Diff, Provider, ProviderError
from observatory.engines.embedded.values import Properties

_START_SECONDS = 60
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 400 * 1024 * 1024),  # as the CLI and the SDK
    ("grpc.enable_http_proxy", 0),
]

# Runs the SDK's host and ends with the engine, even after SIGKILL: stdin is a pipe that closes with the engine.
# It looks for no garbage in the SDK, which would take a tenth of its CPU.
_BOOTSTRAP = """\
import gc, os, runpy, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
gc.disable()
import pulumi.dynamic
gc.freeze()
gc.enable()
runpy.run_module("pulumi.dynamic", run_name="__main__", alter_sys=True)
"""


class DynamicProvider(Provider):
    """Hosts the program's dynamic providers for one run."""

    def __init__(self, directory: Path, project: str, log: Callable[[str], None]) -> None:
        """Start the process that hosts the directory's providers; ``log`` receives every line that it prints."""
        self._log, self._port = log, Future[str]()
        self._host = subprocess.Popen(
            [sys.executable, "-u", "-c", _BOOTSTRAP],
            cwd=directory,
            env={**os.environ, "PULUMI_PROJECT": project},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal must not reach a step in flight
        )
        self._reader = threading.Thread(target=self._read_output, daemon=True)
        self._reader.start()

    def configure(self, config: Properties) -> None:
        """Pass the stack's configuration to the providers' own ``configure``."""
        self._call("Configure", args=config, acceptSecrets=True)

    def check(self, urn: str, olds: Properties, news: Properties) -> tuple[Properties, list[tuple[str, str]]]:
        """See Provider."""
        response = self._call("Check", urn=urn, olds=olds, news=news)
        failures = [(failure.get("property", ""), failure["reason"]) for failure in response.get("failures", [])]
        return response.get("inputs", {}), failures

    def diff(self, urn: str, id_: str, inputs: Properties, outputs: Properties, news: Properties) -> Diff:
        """See Provider."""
        response = self._call("Diff", id=id_, urn=urn, olds=outputs, news=news, old_inputs=inputs)
        return Diff(
            changes={"DIFF_SOME": True, "DIFF_NONE": False}.get(response.get("changes", "")),
            replaces=tuple(response.get("replaces", ())),
            changed=tuple(response.get("diffs", ())),
            delete_before_replace=response.get("deleteBeforeReplace", False),
        )

    def create(self, urn: str, inputs: Properties, timeout: float) -> tuple[str, Properties]:
        """See Provider."""
        response = self._call("Create", urn=urn, properties=inputs, timeout=timeout)
        if "id" not in response:
            raise ProviderError("the provider returned no ID from `create`; return a CreateResult with an ID")
        return response["id"], response.get("properties", {})

    def read(self, urn: str, id_: str, inputs: Properties, outputs: Properties) -> tuple[str, Properties, Properties]:
        """See Provider."""
        response = self._call("Read", id=id_, urn=urn, properties=outputs, inputs=inputs)
        return response.get("id", ""), response.get("properties", {}), response.get("inputs", inputs)

    def update(self, urn: str, id_: str, outputs: Properties, news: Properties, timeout: float) -> Properties:
        """See Provider."""
        response = self._call("Update", id=id_, urn=urn, olds=outputs, news=news, timeout=timeout)
        return dict(response.get("properties", {}))

    def delete(self, urn: str, id_: str, outputs: Properties, timeout: float) -> None:
        """See Provider."""
        self._call("Delete", id=id_, urn=urn, properties=outputs, timeout=timeout)

    def abort(self) -> None:
        """Kill the host."""
        self._host.kill()

    def close(self) -> None:
        """Stop the host, and log the rest of its output."""
        self.abort()
        with self._host:  # which closes its streams
            self._reader.join()

    def _call(self, method: str, **fields: Any) -> Properties:
        """Call a method of the host with the protocol's fields, and return the fields of the response."""
        import grpc  # type: ignore[import-untyped]  # noqa: PLC0415 - slow; the host starts meanwhile

        from observatory.engines.embedded.wire import from_struct, protocol  # noqa: PLC0415 - as above

        request = getattr(protocol("provider_pb2"), f"{method}Request")(**fields)
        try:
            return from_struct(getattr(self._stub, method)(request))
        except ValueError as error:
            raise ProviderError(f"the provider returned a property that no state can have: {error}") from error
        except grpc.RpcError as error:
            call = cast("grpc.Call", error)
            detail = call.details() or ""
            if call.code() is grpc.StatusCode.UNAVAILABLE:
                detail = "the process that hosts the dynamic providers died; see its last output in the log"
            raise ProviderError(_summary(detail), detail) from error

    @cached_property
    def _stub(self) -> Any:
        import grpc  # noqa: PLC0415 - as above

        from observatory.engines.embedded.wire import protocol  # noqa: PLC0415 - as above

        channel = grpc.insecure_channel(f"127.0.0.1:{self._port.result(_START_SECONDS)}", options=_CHANNEL_OPTIONS)
        return protocol("provider_pb2_grpc").ResourceProviderStub(channel)

    def _read_output(self) -> None:
        """Take the port from the first line that is a number, and log all other lines."""
        for raw in self._host.stdout or ():
            line = raw.decode(errors="replace").rstrip()
            if line.isdigit() and not self._port.done():
                self._port.set_result(line)
            elif line:
                self._log(line)
        if not self._port.done():
            self._port.set_exception(
                ProviderError("the process that hosts the dynamic providers did not start; see its output in the log")
            )


def _summary(detail: str) -> str:
    """Return the message at the end of a traceback, without the frames; return a plain message unchanged."""
    lines = detail.strip().splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith("  File ")]
    if not frames:
        return detail.strip()
    end = next((number for number in range(frames[-1], len(lines)) if not lines[number].startswith(" ")), frames[-1])
    kind, separator, text = lines[end].partition(": ")
    message = "\n".join([text or kind, *lines[end + 1 :]])
    is_plain = not hasattr(builtins, kind) or kind in {"Exception", "RuntimeError"}
    return message if separator and is_plain else "\n".join(lines[end:])
