"""Serves Pulumi's language host protocol: starts the program, and lists the packages of its virtual environment.

Owns: the protocol (proto/pulumi/language.proto in Pulumi's source). The port is the first line of standard output; when
the CLI ends, standard input closes and the host ends. Does not own: running the program, which is `launcher`'s.
"""

# ruff: noqa: N802 - the names and signatures of the protocol

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from pulumi.runtime.proto import language_pb2, language_pb2_grpc, plugin_pb2

LAUNCHER = Path(__file__).with_name("launcher.py")
ERROR_SHOWN = 32  # exit code of a program whose error the CLI has shown already
STOP_TIMEOUT_S = 5.0  # as Pulumi's own host
WORKERS = 4
MESSAGE_BYTES = 400 * 1024 * 1024  # as the CLI and the SDK


class LanguageHost(language_pb2_grpc.LanguageRuntimeServicer):
    """Answers the CLI's calls about Python programs."""

    def __init__(self, engine_address: str) -> None:
        self._engine_address = engine_address
        self._programs: set[subprocess.Popen[bytes]] = set()

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        """Return the host's version, which is the SDK's."""
        return plugin_pb2.PluginInfo(version=metadata.version("pulumi"))

    def GetRequiredPackages(self, request: Any, context: Any) -> Any:
        """Return every provider package of the virtual environment, as Pulumi's own host does."""
        packages = [
            plugin_pb2.PackageDependency(name=name.removeprefix("pulumi-"), kind="resource", version=f"v{version}")
            for name, version in _distributions()
            if name.startswith("pulumi-")
        ]
        return language_pb2.GetRequiredPackagesResponse(packages=packages)

    def GetProgramDependencies(self, request: Any, context: Any) -> Any:
        """Return every package of the virtual environment."""
        found = [language_pb2.DependencyInfo(name=name, version=version) for name, version in _distributions()]
        return language_pb2.GetProgramDependenciesResponse(dependencies=found)

    def InstallDependencies(self, request: Any, context: Any) -> Iterator[Any]:
        """Install nothing: the virtual environment is complete."""
        yield from ()

    def About(self, request: Any, context: Any) -> Any:
        """Return the interpreter of the program."""
        version = ".".join(map(str, sys.version_info[:3]))
        return language_pb2.AboutResponse(executable=_python(request.info), version=version)

    def Run(self, request: Any, context: Any) -> Any:
        """Run the program to its end; its output goes to the CLI through this process's streams."""
        variables = {
            "PULUMI_CONFIG": json.dumps(dict(request.config)),
            "PULUMI_CONFIG_SECRET_KEYS": json.dumps(list(request.configSecretKeys)),
        }
        program = subprocess.Popen(
            [_python(request.info), str(LAUNCHER), self._settings(request), request.info.entry_point],
            cwd=request.pwd or None,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
        )
        self._programs.add(program)
        code = program.wait()
        self._programs.discard(program)
        if code in {0, ERROR_SHOWN}:
            return language_pb2.RunResponse(bail=code == ERROR_SHOWN)
        return language_pb2.RunResponse(error=f"program exited with non-zero exit code: {code}")

    def Cancel(self, request: Any, context: Any) -> Any:
        """Interrupt the programs under way."""
        self.stop()
        return empty_pb2.Empty()

    def stop(self) -> None:
        """Interrupt the programs under way; kill those that do not end."""
        for program in tuple(self._programs):
            program.send_signal(signal.SIGINT)
            try:
                program.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                program.kill()

    def _settings(self, request: Any) -> str:
        """Return the keyword arguments of `pulumi.runtime.Settings`, as JSON."""
        return json.dumps(
            {
                "monitor": request.monitor_address,
                "engine": self._engine_address,
                "project": request.project,
                "stack": request.stack,
                "organization": request.organization,
                "root_directory": request.info.root_directory,
                "parallel": request.parallel,
                "dry_run": request.dryRun,
            }
        )


def _python(info: Any) -> str:
    """Return the interpreter that the project's option `virtualenv` names."""
    return str(Path(info.root_directory, info.options["virtualenv"], "bin/python"))


def _distributions() -> Iterator[tuple[str, str]]:
    """Yield the name and version of each package beside this interpreter, which is the program's."""
    for distribution in metadata.distributions():
        yield distribution.metadata["Name"].lower().replace("_", "-"), distribution.version


def main(engine_address: str) -> None:
    """Serve until the CLI closes standard input."""
    limits = [("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.max_send_message_length", MESSAGE_BYTES)]
    server = grpc.server(ThreadPoolExecutor(WORKERS), options=limits)
    host = LanguageHost(engine_address)
    language_pb2_grpc.add_LanguageRuntimeServicer_to_server(host, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):  # the CLI ends its plugins so
        sys.stdin.read()
    host.stop()
    server.stop(None)


if __name__ == "__main__":
    main(sys.argv[1])
