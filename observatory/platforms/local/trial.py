"""The trial of a version on the `local` stack before a deployment: its `--check`, then the smoke suite.

The instance runs with its fleet's login and the real database, on a port of its own behind no balancer. It is always
removed; the instance of a killed command exits after some minutes, and the next trial removes it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from observatory.delivery.environment import HostsError
from observatory.delivery.releases import Manifest, ReleaseError, ReleaseStore, install
from observatory.nodes import Paths, Unit
from observatory.nodes.storage import TRIAL, launcher, trial, trial_directory, trial_releases
from observatory.platforms.smoke import exercise
from observatory.runtime import Probe, Program, RuntimeFault, Sandbox, check_ports
from observatory.settings import FleetName, LocalSettings

if TYPE_CHECKING:
    import httpx

CHECK_SECONDS = 60.0  # for an import and no more
ANSWER_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class LocalTrial:
    """Runs a version as a single instance and exercises it.

    Attributes:
        sandbox: of the stack.
        settings: of the stack.
        releases: the store with the version.
        api_key: may read and write.
        marked_rows: yields the trace id of rows that are removed at the end of the block.
    """

    sandbox: Sandbox
    settings: LocalSettings
    releases: ReleaseStore
    api_key: str = field(repr=False)
    marked_rows: Callable[[], AbstractContextManager[str]]

    def test(self, fleet: FleetName, version: str) -> None:
        """Run a stored version as an instance of `fleet`, exercise it and remove it.

        Raises:
            HostsError: it failed; the message says which test.
            PortInUse: another program holds the port for trials.
        """
        manifest = self._manifest(version)
        unit = trial(
            self.settings,
            Paths(),
            fleet=fleet,
            version=version,
            sha256=manifest.sha256,
            start_seconds=manifest.start_seconds,
        )
        self._remove()
        check_ports(unit.ports)
        try:
            self._install(manifest)
            self._check_itself(unit, manifest)
            self._run(unit)
            with self.marked_rows() as run, self._client() as client:
                exercise(client, run, subject=f"the trial of {version}", version=version)
        except (RuntimeFault, ReleaseError) as error:
            raise HostsError(f"the trial of {version} failed: {error}") from error
        finally:
            self._remove()

    def _manifest(self, version: str) -> Manifest:
        try:
            return self.releases.manifest(version)
        except ReleaseError as error:
            raise HostsError(str(error)) from error

    def _install(self, manifest: Manifest) -> None:
        directory = trial_directory(Paths(), manifest.version, manifest.sha256)
        self.sandbox.make_directory(trial_releases(Paths()))
        artifact = self.releases.artifact(manifest.version)
        install(artifact, sha256=manifest.sha256, target=self.sandbox.host_path(directory))
        self.sandbox.adopt(directory)

    def _check_itself(self, unit: Unit, manifest: Manifest) -> None:
        """Run the artifact's `--check`, which reads its settings, and compare its identity with its manifest."""
        command = (launcher(trial_directory(Paths(), manifest.version, manifest.sha256)), "--check")
        try:
            done = self.sandbox.run(command, env=unit.environment, timeout=CHECK_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise HostsError(f"{manifest.version}: `--check` did not end within {CHECK_SECONDS:.0f} s") from None
        if done.returncode:
            said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
            raise HostsError(f"{manifest.version}: `--check` failed, exit status {done.returncode}:\n{said}")
        expected = manifest.model_dump(include={"name", "version", "schema_min", "schema_max"})
        if (found := _identity(done.stdout)) != expected:
            raise HostsError(f"{manifest.version}: the artifact reports {found}, its manifest says {expected}")

    def _run(self, unit: Unit) -> None:
        program = Program(
            name=unit.name,
            command=unit.command,
            environment=unit.environment,
            stop_seconds=unit.stop_seconds,
            priority=unit.priority,
            restart=False,
            start_retries=0,
        )
        self.sandbox.supervisor.apply(program)
        probe = Probe(**unit.ready.target(self.sandbox.host_path))
        self.sandbox.supervisor.wait_ready(unit.name, probe, timeout=unit.settle_seconds)

    def _client(self) -> httpx.Client:
        import httpx  # noqa: PLC0415 - only where it is used

        url = f"http://127.0.0.1:{self.settings.ports.trial}"
        return httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {self.api_key}"}, timeout=ANSWER_SECONDS, trust_env=False
        )

    def _remove(self) -> None:
        self.sandbox.supervisor.remove(TRIAL)
        shutil.rmtree(self.sandbox.host_path(trial_releases(Paths())), ignore_errors=True)


def _identity(said: str) -> object:
    try:
        return json.loads(said)
    except ValueError:
        return said.strip()[:300]
