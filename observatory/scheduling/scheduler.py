"""The scheduler of a stack: starts a runner process for each job at its time, until SIGTERM or SIGINT.

At its start it runs each job once that was due while no scheduler ran, or whose last run was interrupted. A job that
outlives its killed scheduler holds its lock, so that a second run of it is refused.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from observatory.engines.stack_settings import load_settings
from observatory.files import locks
from observatory.files.locks import FileLockHeldError
from observatory.nodes import Paths
from observatory.nodes.host_jobs import HostJob, host_jobs
from observatory.nodes.rollback_webhook import rollback_token_file
from observatory.nodes.tls import MONITORING, authority_file, combined_file
from observatory.scheduling.certificates import publish_certificates
from observatory.scheduling.due import next_run, trigger
from observatory.scheduling.host_process import identity
from observatory.scheduling.process_log import log_to_file
from observatory.scheduling.records import RecordStore, RunResult, now
from observatory.scheduling.runner import STOP_SECONDS
from observatory.scheduling.scheduler_process import NAME, SchedulerRunningError, lock_file, watcher_process
from observatory.scheduling.webhook import TakeAlerts, serve, token
from observatory.waiting import wait_until
from observatory.workspace import Workspace

BEAT_SECONDS, WATCH_SECONDS = 15, 2
CERTIFICATES_SECONDS = 300  # between two writes of the certificates' expiry
LOG = logging.getLogger("observatory.scheduler")


def run_scheduler(workspace: Workspace, take_alerts: TakeAlerts) -> None:
    """Run the jobs of a stack at their times until SIGTERM or SIGINT; then stop the running ones.

    `take_alerts` handles the alerts that Alertmanager sends meanwhile.

    Raises:
        SettingsError: the stack's configuration is wrong.
        SchedulerRunningError: the stack's scheduler is already running.
    """
    settings = load_settings(workspace)
    jobs = host_jobs(settings)
    try:
        with locks.claim(lock_file(workspace.sandbox)):
            log_to_file(LOG, workspace.sandbox, NAME)
            _listen(workspace, settings.ports.rollback_webhook, take_alerts)
            _Scheduler(workspace, jobs).run_until_signal()
    except FileLockHeldError:
        pid = locks.holder(lock_file(workspace.sandbox))
        raise SchedulerRunningError(
            f"the scheduler of the stack {workspace.stack!r} is already running, as process {pid}; "
            "`observatory up` restarts it"
        ) from None


def _listen(workspace: Workspace, port: int, take_alerts: TakeAlerts) -> None:
    """Listen for alerts. A port in use is logged, and the jobs run without the listener."""
    sandbox, paths = workspace.sandbox, Paths()
    files = {
        "certificate": sandbox.host_path(combined_file(paths, MONITORING)),
        "authority": sandbox.host_path(authority_file(paths)),
    }

    def secret() -> str:
        return token(sandbox, rollback_token_file(paths))

    secret()  # Alertmanager reads the file for its first request
    try:
        serve(port, secret, take_alerts, **files)
    except OSError as error:
        LOG.error("alerts cannot roll back: port %s (ports.rollback_webhook): %s", port, error)  # noqa: TRY400


class _Scheduler:
    """A stack's scheduler, with the runners that it has started."""

    def __init__(self, workspace: Workspace, jobs: tuple[HostJob, ...]) -> None:
        self._workspace, self._jobs = workspace, jobs
        self._store = RecordStore(sandbox=workspace.sandbox)
        self._signalled = threading.Event()
        self._runners: dict[str, subprocess.Popen[bytes]] = {}
        self._starting = threading.Lock()
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(len(jobs) + 1)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    def run_until_signal(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._signalled.set())
        for job in self._jobs:
            self._add(job)
        self._logged(lambda: self._store.publish(self._jobs))()
        self._store.beat()
        self._scheduler.add_job(self._logged(self._store.beat), "interval", seconds=BEAT_SECONDS)
        publish = self._logged(lambda: publish_certificates(self._workspace.sandbox))
        self._scheduler.add_job(publish, "interval", seconds=CERTIFICATES_SECONDS, next_run_time=now())
        self._scheduler.start()
        # Not a job: a stop must not wait for it, because the command that stops both holds the lock that it needs.
        threading.Thread(target=self._watch, name="watcher", daemon=True).start()
        LOG.info("scheduler of %s started with %s", self._workspace.stack, ", ".join(job.name for job in self._jobs))
        self._signalled.wait()
        LOG.info("stopping")
        self._end_runners()
        self._scheduler.shutdown(wait=True)
        LOG.info("stopped")

    def _watch(self) -> None:
        """Keep the watcher running, and stop when the stack's home was removed."""
        workspace, home = self._workspace, identity(self._workspace.home)
        watcher = watcher_process(workspace.sandbox, root=workspace.root, stack=workspace.stack)
        while not self._signalled.wait(WATCH_SECONDS):
            if identity(workspace.home) != home:
                self._signalled.set()
            else:
                self._logged(lambda: LOG.warning("started the watcher") if watcher.keep() else None)()

    def _add(self, job: HostJob) -> None:
        record = self._store.read(job.name)
        if record.result is RunResult.NEVER:
            self._logged(lambda: self._store.write(record))()  # a run that is missed from now on counts as missed
        due = next_run(job, record)
        self._scheduler.add_job(
            self._logged(lambda: self._run(job)), trigger(job), id=job.name, name=job.name, next_run_time=due
        )
        LOG.info("%s: next run %s", job.name, f"{due:%Y-%m-%d %H:%M:%S} UTC" if due > now() else "now (overdue)")

    def _run(self, job: HostJob) -> None:
        """Start a job's runner and wait until it ends; the runner records the result."""
        workspace = self._workspace
        argv = [sys.executable, "-m", "observatory", "scheduler", "run", job.name, "--environment", workspace.stack]
        with self._starting:
            if self._signalled.is_set():
                return
            LOG.info("%s: started", job.name)
            process = subprocess.Popen(
                argv,
                cwd=workspace.root,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            self._runners[job.name] = process
        output = process.communicate()[1].decode(errors="replace").strip()
        LOG.log(logging.ERROR if process.returncode else logging.INFO, "%s: %s", job.name, output or "succeeded")

    def _end_runners(self) -> None:
        """Stop every runner, which stops its job and records that; kill the runners that do not end in time."""
        with self._starting:
            runners = [process for process in self._runners.values() if process.poll() is None]
        for process in runners:
            process.terminate()
        if not wait_until(lambda: all(process.poll() is not None for process in runners), STOP_SECONDS + BEAT_SECONDS):
            for process in runners:
                process.kill()

    def _logged(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return the work wrapped so that a failure, such as a full disk, is logged and the scheduler continues."""

        def logged() -> None:
            try:
                work()
            except Exception:
                LOG.exception("the scheduler failed at a task and continues")

        return logged
