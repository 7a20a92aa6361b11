"""A copy of the checkout with a `local` stack of its own: other ports, another home, the same root filesystem.

Owns: the copy, its settings, and running the command in it as a user would. Does not own: what the stack is.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from observatory.errors import ObservatoryError
from observatory.operations.stack_status import Status, status
from observatory.security.client_certificate import ClientCertificate
from observatory.workspace import Workspace
from service.build import BuiltArtifact, build
from tests.support import reaper
from tests.support.ports import free_ports
from tests.support.waiting import until

SOURCE = Path(__file__).resolve().parents[2]
UP_TIMEOUT_S = 900  # generous: a busy machine takes five times as long as a quiet one
FIRST_VERSION = "v0.1.0"  # of the service, whatever the version of the product is

_RUNNING: list[subprocess.Popen[str]] = []


def end_commands() -> None:
    """Kill the commands that a failed test has left, which would hold the stack's locks, and close their pipes."""
    while _RUNNING:
        process = _RUNNING.pop()
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables of this process. The others stay, also for a moment: other threads start processes."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in values.items():
            patched.setenv(name, value)
        yield


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """A copy of the tracked files; `environment` is what its commands see beyond this process's own."""

    root: Path
    environment: Mapping[str, str]
    outputs: dict[tuple[object, ...], dict[str, Any]] = field(default_factory=dict, repr=False)

    @classmethod
    def copy(cls, root: Path, *, rootfs: Path | None) -> Checkout:
        """Copy what git tracks, or would if it were added; with `rootfs` neither it nor the service is built again."""
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=SOURCE,
            check=True,
            capture_output=True,
            text=True,
        )
        names = [name for name in listed.stdout.splitlines() if (SOURCE / name).exists()]
        root.mkdir(parents=True, exist_ok=True)
        copying = ["cp", "--parents", "--preserve=mode,timestamps", "--target-directory", str(root), *names]
        subprocess.run(copying, cwd=SOURCE, check=True)
        environment = {"PYTHONPATH": str(root), "COLUMNS": "200"}
        if rootfs:
            environment["OBSERVATORY_ROOTFS"] = str(rootfs)
            (root / ".venv").symlink_to(sys.prefix)  # where Pulumi.yaml says that the CLI finds it
            _lend_artifact(root / "dist")
        reaper.watch(root)
        checkout = cls(root=root, environment=environment)
        checkout.configure(ports=free_ports(), first_rollout={"version": FIRST_VERSION})
        return checkout

    def configure(self, stack: str = "local", **groups: Any) -> None:
        """Change groups of settings of a stack; the others stay."""
        file = self.root / f"Pulumi.{stack}.yaml"
        document = yaml.safe_load(file.read_text())
        for group, value in groups.items():
            document["config"][f"llm-observatory:{group}"] = value
        file.write_text(yaml.safe_dump(document))

    def ports(self) -> dict[str, int]:
        """Return the ports of the stack."""
        document = yaml.safe_load((self.root / "Pulumi.local.yaml").read_text())
        return dict(document["config"]["llm-observatory:ports"])

    def start(self, *arguments: str, **changes: str) -> subprocess.Popen[str]:
        """Start the command and return its process, in a session of its own; `end_commands` ends it."""
        process = subprocess.Popen(
            [sys.executable, "-m", "observatory", *arguments],
            cwd=self.root,
            env={**os.environ, **self.environment, **changes},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        _RUNNING.append(process)
        return process

    def run(self, *arguments: str, expect: int = 0, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end; another exit code than `expect` fails with all that it said."""
        process = self.start(*arguments, **changes)
        out, err = process.communicate(timeout=UP_TIMEOUT_S)
        told = f"observatory {' '.join(arguments)} -> {process.returncode}, expected {expect}\n{out}\n{err}"
        assert process.returncode == expect, told
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def exit_code(self, *arguments: str) -> int:
        """Run the command to its end, whatever it says."""
        process = self.start(*arguments)
        process.communicate(timeout=UP_TIMEOUT_S)
        return process.returncode

    def status(self) -> Status:
        """Return what the command `status` shows; in this process: a command takes thrice the CPU."""
        with variables(self.environment):
            return status(Workspace(root=self.root, stack="local"))

    def is_well(self) -> bool:
        """Return whether the command `status` would exit with 0."""
        try:
            return self.status().healthy
        except ObservatoryError:
            return False

    def well_status(self) -> Any:
        """Return the document of the command `status`, once the stack is well.

        On a busy machine a daemon may not answer a single probe in time.
        """
        return json.loads(self._well("--output", "json"))

    def well_table(self) -> str:
        """Return the table of the command `status`, once the stack is well."""
        return self._well()

    def _well(self, *options: str) -> str:
        printed: list[str] = []

        def is_well() -> bool:
            process = self.start("status", *options)
            printed.append(process.communicate(timeout=UP_TIMEOUT_S)[0])
            if process.returncode and printed[-1].startswith("{"):
                daemons = json.loads(printed[-1]).get("daemons", ())
                ended = [each["name"] for each in daemons if each["pid"] is None and each["health"] != "off"]
                assert not ended, f"these do not run: {ended}"  # which no busy machine explains
            return process.returncode == 0

        until(is_well, "the stack to be well", timeout_s=UP_TIMEOUT_S)
        return printed[-1]

    def verify(self, *options: str) -> None:
        """Run the command `verify` until it passes: on a busy machine a scrape or an answer may be missed at first."""
        told: list[str] = []

        def passes() -> bool:
            process = self.start("verify", *options)
            told[:] = process.communicate(timeout=UP_TIMEOUT_S)
            return process.returncode == 0

        try:
            until(passes, "the verification to pass", timeout_s=UP_TIMEOUT_S)
        except TimeoutError as error:
            raise AssertionError("".join(told)) from error

    def json(self, *arguments: str, expect: int = 0, **changes: str) -> Any:
        """Run the command with `--output json` and return its document."""
        return json.loads(self.run(*arguments, "--output", "json", expect=expect, **changes).stdout)

    def output(self, name: str) -> str:
        """Return one output of the stack, secrets in plain text, as the command prints it.

        The command runs once for each state of the stack.
        """
        key = tuple(_versions(self.root / ".observatory"))
        if key not in self.outputs:
            self.outputs[key] = self.json("outputs", "--show-secrets")
        value = self.outputs[key][name]
        return value if isinstance(value, str) else json.dumps(value)

    @property
    def home(self) -> Path:
        """What the stack owns, which its daemons see as /srv."""
        return self.root / reaper.HOME

    def patroni_login(self) -> tuple[str, str]:
        """Return whom Patroni's REST API lets change anything, and the password, as its file has them."""
        document = yaml.safe_load((self.home / "etc/patroni/restapi.yaml").read_text())
        login = document["restapi"]["authentication"]
        return login["username"], login["password"]

    def trusted(self) -> ssl.SSLContext:
        """Return what verifies the stack's servers, and no others."""
        return ssl.create_default_context(cafile=self.output("ca_file"))

    def monitoring(self) -> ssl.SSLContext:
        """Return what Prometheus, Alertmanager and the exporters of the stack require, and what verifies them."""
        tls = self.home / "etc/tls"
        return ClientCertificate(certificate=tls / "monitoring.pem", authority=tls / "ca.crt").context()

    def processes(self) -> set[int]:
        """Return every process that has the stack's home at /srv, or works in this checkout."""
        return reaper.processes(self.root)

    def kill_all(self) -> None:
        """Do what a power cut does to the processes of the stack and of its commands."""
        reaper.kill_all(self.root)


def _versions(directory: Path) -> Iterator[tuple[str, int, int]]:
    """Yield what changes with each write of the files that outputs come from: Pulumi's state and the documents."""
    for place in ("backend/.pulumi/stacks", "rollout", "access"):
        for file in sorted((directory / place).rglob("local.json*")):
            with contextlib.suppress(FileNotFoundError):  # a command that runs has replaced it
                status = file.stat()
                yield file.name, status.st_ino, status.st_mtime_ns


def _lend_artifact(output: Path) -> None:
    """Put the first version of the service where `up` builds it, which finds it up to date while its sources are."""
    built = _first_artifact()
    output.mkdir()
    for file in (built.path, built.manifest_path):
        shutil.copy2(file, output)


@functools.cache
def _first_artifact() -> BuiltArtifact:
    """Build the first version of the service, once for this process."""
    directory = tempfile.mkdtemp(prefix="observatory-artifact-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return build(FIRST_VERSION, Path(directory))


def jobs_at_another_time(now: datetime) -> dict[str, str]:
    """Return the settings by which no job of the host begins within half a day, beside a test that does the same.

    The check of the backups stays: it hinders no other command.
    """
    later = now + timedelta(hours=12)
    daily = f"{later.minute} {later.hour} * *"
    days = {"backup_full": "sun", "backup_differential": "mon-sat", "restore_drill": "wed"}
    names = (*days, "backup_contents", "log_rotation", "certificates", "clones")
    return {name: f"{daily} {days.get(name, '*')}" for name in names}
