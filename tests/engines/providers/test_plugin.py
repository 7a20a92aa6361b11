"""The executables by which the Pulumi CLI finds the in-tree providers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest
from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from pulumi.runtime.proto import provider_pb2_grpc

from observatory.engines.cli import automation
from observatory.engines.providers import server
from observatory.engines.providers.plugin import install, is_installed


def test_a_plugin_prints_its_port_answers_and_ends(tmp_path: Path) -> None:
    command = [str(install(tmp_path / "a b") / "pulumi-resource-postgresql"), "127.0.0.1:1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as plugin:
        assert plugin.stdout
        port = int(plugin.stdout.readline())
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            info = provider_pb2_grpc.ResourceProviderStub(channel).GetPluginInfo(empty_pb2.Empty())
        assert info.version.startswith("3.")
        plugin.send_signal(signal.SIGINT)
        assert plugin.communicate(timeout=120)[1] == ""


class Interrupted:
    """An output whose reader sends SIGINT as soon as it has the port."""

    def write(self, text: str) -> None:
        assert text.strip().isdigit()

    def flush(self) -> None:
        raise KeyboardInterrupt


def test_an_interrupt_just_after_the_port_was_printed_ends_it_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Interrupted())
        server.main("postgresql")


@pytest.mark.parametrize("place", ["home/plugins/resource-postgresql-v3.18.2", "bin"])
def test_an_installed_plugin_takes_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    ours = automation.environment(tmp_path / "backend")["PATH"]
    assert ours == os.pathsep.join([str(tmp_path / "bin"), str(tmp_path / "plugins")])
    real = tmp_path / place / "pulumi-resource-postgresql"
    real.parent.mkdir(parents=True)
    real.touch(mode=0o755)
    assert is_installed("postgresql")
    assert "PATH" not in automation.environment(tmp_path / "backend")
