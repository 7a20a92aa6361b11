"""The trial of a version on the `local` stack before a deployment: its `--check`, the smoke suite, and further tests.

The instance runs with its fleet's login and the real database, on a port of its own behind no balancer. It is always
removed; the instance of a killed command exits after some minutes, and the next trial removes it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from observatory.delivery.environment import HostsError
from observatory.delivery.releases import Manifest, ReleaseError, ReleaseStore, install
from observatory.nodes import Paths, Unit
from observatory.nodes.storage import TRIAL, TRIAL_DRAIN_SECONDS, launcher, trial, trial_directory, trial_releases
from observatory.platforms.content_checks import check_content
from observatory.platforms.instance_process import process_of, running, usage
from observatory.platforms.live_comparison import UnansweredError, judged
from observatory.platforms.place import Place
from observatory.platforms.smoke import Run, exercise, exercise_first
from observatory.platforms.trial_checks import (
    check_growth,
    check_log,
    check_metrics,
    end_with_request_in_flight,
    send_burst,
)
from observatory.runtime import Probe, Program, RuntimeFault, Sandbox, check_ports
from observatory.settings import FleetName, LocalSettings
from observatory.waiting import poll

if TYPE_CHECKING:
    import psutil

    from observatory.database.verification_rows import MarkedRows

LOGS = "/srv/log"
CHECK_SECONDS = 60.0  # for an import and no more
END_SECONDS = TRIAL_DRAIN_SECONDS + 25.0  # until an instance that has not ended is killed: also on a busy machine
POLL_SECONDS = 0.1
LOG_BYTES = 64 * 2**20  # of each log that are read


@dataclass(frozen=True, kw_only=True)
class LocalTrial:
    """Runs a version as a single instance and exercises it.

    Attributes:
        sandbox: of the stack.
        settings: of the stack.
        releases: the store with the version.
        marked_rows: yields rows that are removed at the end of the block.
        live: returns the fleet with the traffic of users.
        watching: watches the database in a block, and raises LostDatabaseError in place of an UnjudgedError.
    """

    sandbox: Sandbox
    settings: LocalSettings
    releases: ReleaseStore
    marked_rows: Callable[[], AbstractContextManager[MarkedRows]]
    live: Callable[[], Place]
    watching: Callable[[], AbstractContextManager[None]]

    def test(self, fleet: FleetName, version: str) -> tuple[str, ...]:
        """Run a stored version as an instance of `fleet`, exercise it and remove it.

        Returns:
            What was not checked, and why.

        Raises:
            HostsError: it failed; the message says which test.
            UnjudgedError: so did the live fleet, once the instance was removed; LostDatabaseError where the database
                was lost meanwhile.
            PortInUse: another program holds the port for trials.
        """
        manifest = self._manifest(version)
        tested = f"{fleet} {version}"
        with self.watching():
            return judged(lambda: self._attempt(fleet, manifest), self.live(), self.marked_rows, tested=tested)

    def _attempt(self, fleet: FleetName, manifest: Manifest) -> tuple[str, ...]:
        version = manifest.version
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
            with self.marked_rows() as rows:
                place = Place(name=f"the trial of {version}", url=self._url)
                return self._test(place, Run.with_database(rows), manifest)
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
        try:
            self.sandbox.supervisor.wait_ready(unit.name, probe, timeout=unit.settle_seconds)
        except RuntimeFault as error:
            raise UnansweredError(f"the trial failed: {error}", partial(exercise_first, 1)) from error

    def _test(self, place: Place, run: Run, manifest: Manifest) -> tuple[str, ...]:
        """Exercise the instance, end it, and read what it has logged meanwhile."""
        logs, process = self._logs(), _service(self.sandbox.supervisor.status(TRIAL).pid)
        exercise(place, run, version=manifest.version)
        check_content(place, run, version=manifest.version, schema_max=manifest.schema_max)
        check_metrics(place, manifest.metrics or ())
        send_burst(place, run)
        unchecked = check_growth(place, run, lambda: usage(process))
        end_with_request_in_flight(place, run, lambda: _terminate(process), lambda: self._ended(process))
        check_log(place, run, self._logged_after(logs))
        return unchecked

    def _ended(self, process: psutil.Process) -> int | None:
        """Wait until the instance has ended; return its exit status, None where it had to be killed."""
        status = poll(
            lambda: self.sandbox.supervisor.status(TRIAL),
            until=lambda found: not found.running,
            timeout_s=END_SECONDS,
            interval_s=POLL_SECONDS,
        )
        if status.running:
            process.kill()
        return status.exit_status

    def _logs(self) -> dict[str, int]:
        """Return the size of each log."""
        sizes = {}
        for file in self.sandbox.host_path(LOGS).glob("*.log"):
            with contextlib.suppress(FileNotFoundError):  # renamed by the rotation meanwhile
                sizes[file.name] = file.stat().st_size
        return sizes

    def _logged_after(self, sizes: Mapping[str, int]) -> bytes:
        """Return what has been logged, in any file, since the logs had these sizes."""
        logged = b""
        for name, size in self._logs().items():
            with contextlib.suppress(FileNotFoundError), self.sandbox.open_read(f"{LOGS}/{name}") as file:
                file.seek(sizes.get(name, 0) if size >= sizes.get(name, 0) else 0)
                logged += file.read(LOG_BYTES)
        return logged

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self.settings.ports.trial}"

    def _remove(self) -> None:
        self.sandbox.supervisor.remove(TRIAL)
        shutil.rmtree(self.sandbox.host_path(trial_releases(Paths())), ignore_errors=True)


def _service(pid: int | None) -> psutil.Process:
    """Return the process of the service, which `timeout` has started."""
    with running():
        return process_of(pid).children()[0]


def _terminate(process: psutil.Process) -> None:
    """Send SIGTERM to the service alone, once: `timeout` would pass it on to its whole group, too."""
    with running():
        process.terminate()


def _identity(said: str) -> object:
    try:
        return json.loads(said)
    except ValueError:
        return said.strip()[:300]
