"""The machine of the `local` stack: one sandbox with one supervisor, and the daemons that run in it.

Owns the resources `Machine` and `Daemon`, which start every process of the stack except the scheduler.
`observatory.nodes` renders a daemon's unit; `observatory.runtime` starts and stops processes.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pulumi
from pulumi.dynamic import (
    CheckFailure,
    CheckResult,
    CreateResult,
    DiffResult,
    ReadResult,
    Resource,
    ResourceProvider,
    UpdateResult,
)

from components.dynamic import has_drifted, with_drift, without_provider
from components.local.configuration import check, check_loaded, kept_if_refused, was_refused
from components.local.wanted import INPUT, check_wanted
from observatory.backups.repository_places import RepositoryPlaceError, check_places, use_places
from observatory.documents.rollout import StaleRolloutError
from observatory.nodes import Unit
from observatory.nodes.storage import unit_name
from observatory.runtime import (
    BalancerUnreachable,
    Drift,
    LiveCertificates,
    Probe,
    Program,
    Sandbox,
    check_ports,
    find_drift,
    mounts,
)
from observatory.runtime.drift import NOT_DECLARED
from observatory.runtime.home import HomeError, check_not_moved, check_unclaimed, claim, set_in_state
from observatory.runtime.process_tree import ProcessTree
from observatory.runtime.processes import handles
from observatory.runtime.supervisor_files import repair_supervisor, supervisor_drift
from observatory.scheduling.host_process import resume
from observatory.scheduling.scheduler_process import stop_scheduler
from observatory.waiting import wait_until

READY_PROBES, BETWEEN_PROBES_S = 3, 0.5  # one may fail on a busy machine
HANGING_PROBES = 2  # without an answer in a row, each for the probe's time
UNIT_KEYS = tuple(Unit.model_fields)


@dataclass(frozen=True, kw_only=True)
class MachineArgs:
    """The directory with all the stack's files, the root filesystem of the daemons, and the stack's full name.

    `repositories` has the directories of backup repositories that are outside of the home, by number.
    """

    home: Path
    rootfs: Path
    stack: str
    repositories: Mapping[int, Path] = field(default_factory=dict)


class MachineProvider(ResourceProvider):
    """Starts and stops the sandbox. Its `diff` checks that the sandbox runs, so that `up` starts it after a reboot."""

    serialize_as_secret_always = False

    def check(self, _olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Refuse to create a machine over the home of another stack or of another state.

        A directory of a backup repository that cannot be used is refused, too.
        """
        reasons = {"home": None if _olds else _foreign(news), "repositories": _misplaced(news)}
        failures = [CheckFailure(name, reason) for name, reason in reasons.items() if reason]
        return CheckResult(inputs=news, failures=failures)

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Start the sandbox, or adopt a running one."""
        claim(sandbox_of(props), props["stack"])
        _start(sandbox_of(props), _repositories(props))
        return CreateResult(id_=props["home"], outs=without_provider(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Report a change when the sandbox is down or its root filesystem changes; another home replaces it.

        A sandbox that release 0.1.0 made as root changes too: its files get another owner.

        Raises:
            HomeError: the home of the state still has the data.
        """
        moved = _olds["home"] != _news["home"]
        check_not_moved(Path(_olds["home"]), Path(_news["home"]))
        sandbox = sandbox_of(_news)
        changed = any(_olds.get(key) != _news.get(key) for key in ("home", "rootfs", "stack", "repositories"))
        changed = changed or not sandbox.alive() or sandbox.former_owner is not None or not _sees_repositories(sandbox)
        drift = () if changed else supervisor_drift(sandbox)
        changes = has_drifted("supervisor", _olds, drift) or changed
        return DiffResult(changes=changes, replaces=["home"] if moved else [], delete_before_replace=True)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Report in the output `drift` what differs on the disk; without a difference there is no such output."""
        return ReadResult(id_=id_, outs=with_drift(props, supervisor_drift(sandbox_of(props))))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Restart the sandbox on the current root filesystem and directories, and repair the supervisor's files."""
        if _olds["rootfs"] != _news["rootfs"]:
            sandbox_of(_olds).stop()
        claim(sandbox_of(_news), _news["stack"])
        _start(sandbox_of(_news), _repositories(_news))
        repair_supervisor(sandbox_of(_news))
        set_in_state(sandbox_of(_news), in_state=True)
        return UpdateResult(outs=without_provider(_news))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Stop the sandbox and every process in it; keep the data."""
        set_in_state(sandbox_of(_props), in_state=False)
        sandbox_of(_props).stop()


class Machine(Resource, module="local", name="Machine"):
    """The sandbox and its supervisor."""

    home: pulumi.Output[str]
    rootfs: pulumi.Output[str]

    def __init__(self, name: str, args: MachineArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        self.args = args
        props: dict[str, Any] = {"home": str(args.home), "rootfs": str(args.rootfs), "stack": args.stack}
        if args.repositories:
            props["repositories"] = {str(number): str(path) for number, path in args.repositories.items()}
        super().__init__(MachineProvider(), name, props, opts)


class DaemonProvider(ResourceProvider):
    """Runs one `Unit` under the sandbox's supervisor.

    `update` reloads the daemon if only files changed and the unit has a reload signal, and restarts it otherwise. It
    also restarts an instance of the service that hangs. A daemon with `stopped` has its files, and the supervisor does
    not have it. `delete` keeps the daemon's data. Every method is idempotent, because a killed `up` can leave a daemon
    incomplete.
    """

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Write the files, start the daemon and wait until it is ready.

        A running daemon is stopped first: a killed or failed `up` left it, and it may have read other files.

        Raises:
            StaleRolloutError: the rollout document wants something else of the instance by now.
        """
        check_wanted(props)
        set_in_state(sandbox_of(props), in_state=True)  # a daemon is created after its machine
        if sandbox_of(props).alive():
            sandbox_of(props).supervisor.remove(props["name"])
        if not _keep_stopped(props):
            _run_if_wanted(props, files_changed=False, rebind=False)
        return CreateResult(id_=props["name"], outs=without_provider(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Compare the unit and its secret files with the state and with the disk, and check that the daemon is ready.

        A file that already has the declared content is no drift, whatever wrote it. Prints what differs on the disk.
        """
        replaces = [key for key in ("name", "home") if _olds.get(key) != _news.get(key)]
        changed = any(_olds.get(key) != _news.get(key) for key in (*UNIT_KEYS, "secret_files", "rootfs"))
        drift = () if replaces or changed else _drift(_news)
        changes = has_drifted(_news["name"], _olds, drift) or bool(replaces) or changed or not _as_declared(_news)
        return DiffResult(changes=changes, replaces=replaces, delete_before_replace=True)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Report in the output `drift` what differs on the disk; without a difference there is no such output."""
        return ReadResult(id_=id_, outs=with_drift(props, _drift(props)))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Apply the changes and repair the files, by a reload where that is enough; raises as `create`."""
        check_wanted(_news)
        if _keep_stopped(_news):
            return UpdateResult(outs=without_provider(_news))
        changed = {key for key in ("files", "secret_files", "ports") if _olds.get(key) != _news.get(key)}
        differing = [each for each in _drift(_news) if each.content]
        drifted = {_part_of(each, _news) for each in differing}
        if _news.get("watches_secrets") or (
            changed | drifted == {"secret_files"} and _replaced_live(_olds, _news, {each.path for each in differing})
        ):
            changed, drifted = changed - {"secret_files"}, drifted - {"secret_files"}
        _run_if_wanted(
            _news,
            files_changed=bool(changed or drifted - {"program"}),
            rebind="ports" in changed,
            script_changed="program" in drifted,
        )
        return UpdateResult(outs=without_provider(_news))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Stop the daemon and remove it from the supervisor."""
        sandbox = sandbox_of(_props)
        if sandbox.alive():
            sandbox.supervisor.remove(_props["name"])


class Daemon(Resource, module="local", name="Daemon"):
    """One daemon of the machine: a unit from `observatory.nodes`, with its secret files; `stopped` does not run.

    `rollout` is what an instance of the service was declared from (`components.local.wanted`).
    """

    def __init__(
        self,
        name: str,
        *,
        machine: Machine,
        unit: Unit,
        secret_files: Mapping[str, pulumi.Input[str]] | None = None,
        stopped: bool = False,
        rollout: Mapping[str, str] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        self.unit = unit
        props: dict[str, Any] = {"home": machine.home, "rootfs": machine.rootfs, **unit.model_dump(exclude_none=True)}
        if secret_files:
            props["secret_files"] = pulumi.Output.secret(dict(secret_files))
        if stopped:
            props["stopped"] = True
        if rollout:
            props[INPUT] = dict(rollout)
        super().__init__(DaemonProvider(), name, props, opts)


def sandbox_of(props: Mapping[str, Any]) -> Sandbox:
    """Return the sandbox of a resource, by its properties `home` and `rootfs`."""
    return Sandbox(Path(props["home"]), Path(props["rootfs"]))


def _foreign(props: Mapping[str, Any]) -> str | None:
    """Return why a machine that is new in the state must not use its home, None if it may."""
    if not isinstance(props.get("home"), str):  # unknown in a plan
        return None
    try:
        check_unclaimed(sandbox_of(props), props["stack"])
    except HomeError as error:
        return str(error)
    return None


def _start(sandbox: Sandbox, repositories: Mapping[int, Path]) -> None:
    """Start a sandbox, again if it runs without the directories of the repositories.

    One that changes its owner has no scheduler meanwhile, whose jobs would fail.
    """
    if sandbox.former_owner:
        stop_scheduler(sandbox)
        sandbox.start()
    before = mounts.recorded(sandbox.home)
    use_places(sandbox, repositories)
    if mounts.recorded(sandbox.home) != before or not _sees_repositories(sandbox):
        sandbox.stop()
    sandbox.start()


def _repositories(props: Mapping[str, Any]) -> dict[int, Path]:
    return {int(number): Path(path) for number, path in props.get("repositories", {}).items()}


def _sees_repositories(sandbox: Sandbox) -> bool:
    """Return whether a running sandbox has the directories of its repositories as the host has them now."""
    pid = sandbox.supervisor_pid()
    return pid is None or mounts.are_seen(sandbox.home, pid)


def _misplaced(props: Mapping[str, Any]) -> str | None:
    """Return why a directory of the repositories cannot be used, None if they can."""
    if not isinstance(props.get("home"), str) or not isinstance(props.get("repositories", {}), dict):
        return None  # unknown in a plan
    try:
        check_places(sandbox_of(props), _repositories(props))
    except RepositoryPlaceError as error:
        return str(error)
    return None


def _unit(props: Mapping[str, Any]) -> Unit:
    return Unit.model_validate({key: props[key] for key in UNIT_KEYS if key in props})


def _as_declared(props: Mapping[str, Any]) -> bool:
    """Return whether the daemon is ready, or, if it is stopped, whether the supervisor does not have it."""
    if not props.get("stopped"):
        return _ready(props)
    sandbox = sandbox_of(props)
    return sandbox.alive() and sandbox.supervisor.status(props["name"]).state == "ABSENT"


def _keep_stopped(props: Mapping[str, Any]) -> bool:
    """Write the files of a stopped daemon and remove it from the supervisor; return False for any other daemon."""
    if not props.get("stopped"):
        return False
    sandbox = sandbox_of(props)
    _write_files(sandbox, _unit(props), props)
    sandbox.supervisor.remove(props["name"])
    return True


def _ready(props: Mapping[str, Any]) -> bool:
    """Return whether the daemon runs and answers, has loaded its files, and SIGSTOP has stopped no process of it."""
    sandbox, unit = sandbox_of(props), _unit(props)
    if not sandbox.alive():
        return False
    probe, status = Probe(**unit.ready.target(sandbox.host_path)), sandbox.supervisor.status(unit.name)
    ready = status.running and not ProcessTree.read().stopped_of(status.pid or 0) and _succeeds(probe)
    return ready and not was_refused(sandbox, unit)


def _succeeds(probe: Probe) -> bool:
    """Return whether one of some probes succeeds."""
    for attempt in range(READY_PROBES):
        if attempt:
            time.sleep(BETWEEN_PROBES_S)
        if probe.check():
            return True
    return False


def _program(unit: Unit) -> Program:
    return Program(
        name=unit.name,
        command=unit.command,
        environment=unit.environment,
        stop_signal=unit.stop_signal,
        stop_seconds=unit.stop_seconds,
        priority=unit.priority,
    )


def _drift(props: Mapping[str, Any]) -> tuple[Drift, ...]:
    """Return how the daemon's files on the disk differ from those that `props` declare."""
    unit, program = _unit(props), _program(_unit(props))
    files = {**unit.files, **props.get("secret_files", {})}
    started = {} if props.get("stopped") else program.files
    return find_drift(
        sandbox_of(props),
        {**files, **started},
        directories=unit.directories,
        whole=_read_as_a_whole(unit.command, files),
    )


def _read_as_a_whole(command: Sequence[str], files: Collection[str]) -> set[str]:
    """Return the directories of which a daemon reads every file: those of its command, and those named *.d."""
    named = {argument.rpartition("=")[2] for argument in command}
    parents = {str(PurePosixPath(path).parent) for path in files}
    return {parent for parent in parents if parent in named or parent.endswith(".d")}


def _part_of(drift: Drift, props: Mapping[str, Any]) -> str:
    """Return which property a drifted path belongs to; `program` are the files of the supervisor."""
    if drift.path in _program(_unit(props)).files:
        return "program"
    return "secret_files" if drift.path in props.get("secret_files", {}) else "files"


def _run_if_wanted(props: Mapping[str, Any], **changes: bool) -> None:
    """Do what `_run` does, and remove an instance that the rollout document does not want any more by then.

    Raises:
        StaleRolloutError: it did not.
    """
    try:
        _run(props, **changes)
    finally:
        try:
            check_wanted(props)
        except StaleRolloutError:
            sandbox_of(props).supervisor.remove(props["name"])
            raise


def _run(props: Mapping[str, Any], *, files_changed: bool, rebind: bool, script_changed: bool = False) -> None:
    """Write the daemon's files, and start, reload or restart it so that it runs as `props` declare.

    Args:
        props: of the resource.
        files_changed: whether files that it read at its start have changed.
        rebind: whether its ports have changed; not every daemon binds other ports at a reload.
        script_changed: whether the script that starts it was changed, so that it may run as that says.
    """
    sandbox, unit = sandbox_of(props), _unit(props)
    was_running = sandbox.supervisor.status(unit.name).running
    if rebind or not was_running:
        check_ports(unit.ports, ours=sandbox.members())
    with kept_if_refused(sandbox, unit):
        _write_files(sandbox, unit, props)
        check(sandbox, unit)
        restarted = sandbox.supervisor.apply(_program(unit))
        changed = files_changed or script_changed or (was_running and was_refused(sandbox, unit))
        if changed and was_running and not restarted:
            _reload(sandbox, unit, restart=script_changed or (rebind and not unit.reload_rebinds))
        elif was_running and not restarted:
            _restart_hanging(sandbox, unit)
        probe = Probe(**unit.ready.target(sandbox.host_path))
        sandbox.supervisor.wait_ready(unit.name, probe, timeout=unit.settle_seconds)


def _restart_hanging(sandbox: Sandbox, unit: Unit) -> None:
    """Continue a daemon that SIGSTOP has stopped; restart an instance of the service that gives no answer.

    Other daemons that give no answer may be busy: a restart of Patroni would stop PostgreSQL. A stopped daemon that is
    ready by a connection alone, such as HAProxy, is continued, too.
    """
    probe = Probe(**unit.ready.target(sandbox.host_path))
    hangs = all(probe.hangs() for _ in range(HANGING_PROBES))
    for pid in ProcessTree.read().stopped_of(sandbox.supervisor.status(unit.name).pid or 0):
        resume(pid)  # also handles the signal to stop then
    if not hangs:
        return
    if unit.name.startswith(unit_name("")):
        sandbox.supervisor.restart(unit.name)


def _write_files(sandbox: Sandbox, unit: Unit, props: Mapping[str, Any]) -> None:
    for drift in _drift(props):
        if drift.problem == NOT_DECLARED:
            sandbox.remove_file(drift.path)
    for directory in unit.directories:
        sandbox.make_directory(directory)
    for path, content in {**unit.files, **props.get("secret_files", {})}.items():
        sandbox.write_file(path, content)


def _replaced_live(olds: Mapping[str, Any], news: Mapping[str, Any], drifted: Collection[str]) -> bool:
    """Replace changed certificates of a running HAProxy; return False if a reload must do it.

    `drifted` are the files whose content on the disk differs.
    """
    if not news.get("runtime_socket"):
        return False
    before, after = olds.get("secret_files", {}), news.get("secret_files", {})
    changed = {file: after[file] for file in after if file in drifted or before.get(file) != after[file]}
    if not set(changed) <= set(before) or not all(file.endswith(".pem") for file in changed):
        return False
    try:
        LiveCertificates(sandbox=sandbox_of(news), socket=news["runtime_socket"]).replace(changed)
    except BalancerUnreachable:
        return False
    return True


def _handles(sandbox: Sandbox, unit: Unit, signal_name: str) -> bool:
    """Wait until a daemon, which may have just started, handles a signal; return whether it does."""
    number = signal.Signals[f"SIG{signal_name}"]
    return wait_until(lambda: handles(sandbox.supervisor.status(unit.name).pid or 0, number), unit.settle_seconds)


def _reload(sandbox: Sandbox, unit: Unit, *, restart: bool) -> None:
    if unit.reload_signal and not restart and _handles(sandbox, unit, unit.reload_signal):
        begun = time.time()
        sandbox.supervisor.signal(unit.name, unit.reload_signal)
        check_loaded(sandbox, unit, since=begun)
    else:
        sandbox.supervisor.restart(unit.name)
