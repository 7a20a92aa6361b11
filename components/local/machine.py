"""The machine of the `local` stack: one sandbox with one supervisor, and the daemons that run in it.

Owns the resources `Machine` and `Daemon`, which start every process of the stack except the scheduler.
`observatory.nodes` renders a daemon's unit; `observatory.runtime` starts and stops processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, ResourceProvider, UpdateResult

from components.dynamic import without_provider
from observatory.nodes import Unit
from observatory.runtime import Probe, Program, Sandbox, check_ports

UNIT_KEYS = tuple(Unit.model_fields)


@dataclass(frozen=True, kw_only=True)
class MachineArgs:
    """`home` is the directory with all the stack's files, `rootfs` the root filesystem that the daemons run from."""

    home: Path
    rootfs: Path


class MachineProvider(ResourceProvider):
    """Starts and stops the sandbox. Its `diff` checks that the sandbox runs, so that `up` starts it after a reboot."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Start the sandbox, or adopt a running one."""
        sandbox_of(props).start()
        return CreateResult(id_=props["home"], outs=without_provider(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Report a change when the sandbox is down or its root filesystem changes; another home replaces it."""
        moved = _olds["home"] != _news["home"]
        changed = moved or _olds["rootfs"] != _news["rootfs"] or not sandbox_of(_news).alive()
        return DiffResult(changes=changed, replaces=["home"] if moved else [], delete_before_replace=True)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Restart the sandbox on the current root filesystem."""
        if _olds["rootfs"] != _news["rootfs"]:
            sandbox_of(_olds).stop()
        sandbox_of(_news).start()
        return UpdateResult(outs=without_provider(_news))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Stop the sandbox and every process in it; keep the data."""
        sandbox_of(_props).stop()


class Machine(Resource, module="local", name="Machine"):
    """The sandbox and its supervisor."""

    home: pulumi.Output[str]
    rootfs: pulumi.Output[str]

    def __init__(self, name: str, args: MachineArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        self.args = args
        super().__init__(MachineProvider(), name, {"home": str(args.home), "rootfs": str(args.rootfs)}, opts)


class DaemonProvider(ResourceProvider):
    """Runs one `Unit` under the sandbox's supervisor.

    `update` reloads the daemon if only files changed and the unit has a reload signal, and restarts it otherwise.
    `delete` keeps the daemon's data. Every method is idempotent, because a killed `up` can leave a daemon incomplete.
    """

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Write the files, start the daemon and wait until it is ready.

        A running daemon is stopped first: a killed or failed `up` left it, and it may have read other files.
        """
        if sandbox_of(props).alive():
            sandbox_of(props).supervisor.remove(props["name"])
        _run(props, files_changed=False, rebind=False)
        return CreateResult(id_=props["name"], outs=without_provider(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Compare the unit and its secret files, and check whether the daemon is ready."""
        replaces = [key for key in ("name", "home") if _olds.get(key) != _news.get(key)]
        changed = any(_olds.get(key) != _news.get(key) for key in (*UNIT_KEYS, "secret_files", "rootfs"))
        changes = bool(replaces) or changed or not _ready(_news)
        return DiffResult(changes=changes, replaces=replaces, delete_before_replace=True)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Apply the changes, by a reload where that is enough."""
        changed = {key for key in ("files", "secret_files", "ports") if _olds.get(key) != _news.get(key)}
        if _news.get("watches_secrets"):
            changed.discard("secret_files")
        _run(_news, files_changed=bool(changed), rebind="ports" in changed)
        return UpdateResult(outs=without_provider(_news))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Stop the daemon and remove it from the supervisor."""
        sandbox = sandbox_of(_props)
        if sandbox.alive():
            sandbox.supervisor.remove(_props["name"])


class Daemon(Resource, module="local", name="Daemon"):
    """One daemon of the machine: a unit from `observatory.nodes`, with its secret files."""

    def __init__(
        self,
        name: str,
        *,
        machine: Machine,
        unit: Unit,
        secret_files: Mapping[str, pulumi.Input[str]] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        self.unit = unit
        props: dict[str, Any] = {"home": machine.home, "rootfs": machine.rootfs, **unit.model_dump(exclude_none=True)}
        if secret_files:
            props["secret_files"] = pulumi.Output.secret(dict(secret_files))
        super().__init__(DaemonProvider(), name, props, opts)


def sandbox_of(props: Mapping[str, Any]) -> Sandbox:
    """Return the sandbox of a resource, by its properties `home` and `rootfs`."""
    return Sandbox(Path(props["home"]), Path(props["rootfs"]))


def _unit(props: Mapping[str, Any]) -> Unit:
    return Unit.model_validate({key: props[key] for key in UNIT_KEYS if key in props})


def _ready(props: Mapping[str, Any]) -> bool:
    """Return whether the supervisor runs the daemon and its probe succeeds."""
    sandbox, unit = sandbox_of(props), _unit(props)
    return sandbox.alive() and sandbox.supervisor.status(unit.name).running and Probe(**unit.ready.target()).check()


def _run(props: Mapping[str, Any], *, files_changed: bool, rebind: bool) -> None:
    """Write the daemon's files, and start, reload or restart it so that it runs as `props` declare.

    Args:
        props: of the resource.
        files_changed: whether files that it read at its start have changed.
        rebind: whether its ports have changed; not every daemon binds other ports at a reload.
    """
    sandbox, unit = sandbox_of(props), _unit(props)
    was_running = sandbox.supervisor.status(unit.name).running
    if rebind or not was_running:
        check_ports(unit.ports, ours=sandbox.members())
    for directory in unit.directories:
        sandbox.make_directory(directory)
    for path, content in {**unit.files, **props.get("secret_files", {})}.items():
        sandbox.write_file(path, content)
    program = Program(
        name=unit.name,
        command=unit.command,
        environment=unit.environment,
        stop_signal=unit.stop_signal,
        stop_seconds=unit.stop_seconds,
        priority=unit.priority,
    )
    restarted = sandbox.supervisor.apply(program)
    if files_changed and was_running and not restarted:
        _reload(sandbox, unit, rebind=rebind)
    sandbox.supervisor.wait_ready(unit.name, Probe(**unit.ready.target()), timeout=unit.settle_seconds)


def _reload(sandbox: Sandbox, unit: Unit, *, rebind: bool) -> None:
    if unit.reload_signal and (unit.reload_rebinds or not rebind):
        sandbox.supervisor.signal(unit.name, unit.reload_signal)
    else:
        sandbox.supervisor.restart(unit.name)
