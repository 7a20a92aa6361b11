"""The public library: what `observatory` does, for CI to call without a command line.

Wires settings, engine, runtime and service build together. Nothing here prints; progress goes to a `Reporter`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import observatory
from observatory import automation, engine
from observatory.delivery.releases import Manifest
from observatory.delivery.rollout import RolloutDocument
from observatory.demonstration import Demonstration, demonstrate
from observatory.engine import Result
from observatory.progress import Phase, Progress, Reporter, silent, task
from observatory.runtime import Sandbox, check_ports, ensure_rootfs, rootfs_path
from observatory.settings import StackSettings, load_file
from observatory.status import DaemonStatus, daemon_statuses
from observatory.workspace import Workspace

EngineChoice = Literal["auto", "cli", "embedded"]
SETTLE_S = 30.0
API_KEY_TYPE = "pulumi-python:dynamic/local:ApiKey"


class OperationError(Exception):
    """An operation that cannot be done here; the message names the remedy."""


@dataclass(frozen=True, kw_only=True)
class UpResult:
    """What `up` did: the engine that ran, its result, what runs now, and the first traces where the stack is new."""

    engine: Literal["cli", "embedded"]
    result: Result
    status: Status
    demonstration: Demonstration | None


@dataclass(frozen=True, kw_only=True)
class Status:
    """What runs on a stack, by the living thing; `rollout` is None where nothing was ever deployed."""

    daemons: list[DaemonStatus]
    rollout: RolloutDocument | None
    schema_version: int | None
    fleet_size: int

    @property
    def healthy(self) -> bool:
        """Whether every daemon is there and ready."""
        return bool(self.daemons) and all(daemon.health == "ready" for daemon in self.daemons)


def open_workspace(stack: str = "local", root: Path | None = None) -> Workspace:
    """Return a stack's workspace; `root` defaults to the checkout that this library stands in.

    Raises:
        OperationError: there is no such stack.
    """
    root = root or Path(observatory.__file__).resolve().parent.parent
    workspace = Workspace(root=root, stack=stack)
    if not workspace.config_file.exists():
        known = ", ".join(sorted(file.name.split(".")[1] for file in root.glob("Pulumi.*.yaml"))) or "none"
        raise OperationError(f"no stack {stack!r}: {workspace.config_file.name} does not exist (stacks here: {known})")
    return workspace


def bootstrap(workspace: Workspace, report: Reporter = silent) -> StackSettings:
    """Make what the program needs before it can run: root filesystem, passphrase, first release, first rollout.

    May be repeated; what stands is kept.

    Raises:
        SettingsError: the stack's configuration is wrong.
        observatory.runtime.RuntimeFault: the machine cannot hold the stack.
        BuildError: the service's artifact cannot be built.
    """
    settings = load_file(workspace.config_file)
    _make_passphrase(workspace)
    with task(report, "Debian 13 root filesystem") as at:
        ensure_rootfs(workspace.cache, progress=lambda message, _fraction: at(message))
    with task(report, f"storage service {settings.first_rollout.version}"):
        manifest = _first_release(workspace, settings)
    first = settings.first_rollout
    workspace.rollout.create(
        RolloutDocument.first(version=first.version, sha256=manifest.sha256, active_fleet=first.active_fleet)
    )
    engine.init(engine_options(workspace))
    return settings


def _first_release(workspace: Workspace, settings: StackSettings) -> Manifest:
    """Build the version that a new stack starts with, unless it is kept already."""
    version = settings.first_rollout.version
    if version in workspace.releases.versions() and workspace.rollout.read():
        return workspace.releases.manifest(version)
    from service.build import build  # noqa: PLC0415 - only where something is built

    built = build(version, workspace.root / "dist")
    return workspace.releases.add(built.path, built.manifest_path)


def _make_passphrase(workspace: Workspace) -> None:
    """Draw the passphrase once; an existing one is never replaced, since the state's secrets depend on it."""
    file = workspace.passphrase_file
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secrets.token_urlsafe(32))
    _forget_salt(workspace.config_file)


def _forget_salt(config_file: Path) -> None:
    """Drop the salt that a plain `pulumi` wrote for an earlier passphrase: it would refuse the new one."""
    lines = config_file.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("encryptionsalt:")]
    if kept != lines:
        config_file.write_text("".join(kept), encoding="utf-8")


def _passphrase(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise OperationError(f"{file}: no passphrase ({error.strerror}); `observatory bootstrap` makes one") from error


def engine_options(workspace: Workspace) -> engine.StackOptions:
    """Return what either engine needs to know of a stack."""
    return engine.StackOptions(
        cwd=workspace.root,
        stack=workspace.stack,
        backend=workspace.backend,
        passphrase=_passphrase(workspace.passphrase_file),
    )


def choose_engine(choice: EngineChoice) -> Literal["cli", "embedded"]:
    """Return the engine to run with: the CLI where there is one, unless told otherwise.

    Raises:
        OperationError: the CLI is wanted and not on PATH.
    """
    if choice == "cli" and not automation.find_cli():
        raise OperationError("no `pulumi` on PATH; install the Pulumi CLI or use --engine embedded")
    if choice == "auto":
        return "cli" if automation.find_cli() else "embedded"
    return choice


def _engine(choice: Literal["cli", "embedded"]) -> Any:
    """Return the module that runs the stack; both offer preview, up and destroy."""
    return automation if choice == "cli" else engine


def preview(workspace: Workspace, *, choice: EngineChoice = "auto", report: Reporter = silent) -> Result:
    """Say what `up` would do; changes nothing but what `bootstrap` makes."""
    chosen = choose_engine(choice)
    bootstrap(workspace, report)
    with task(report, "preview"):
        result: Result = _engine(chosen).preview(engine_options(workspace))
    return result


def up(workspace: Workspace, *, choice: EngineChoice = "auto", report: Reporter = silent) -> UpResult:
    """Bring the stack to what the program declares, and show with real traces that a new one works.

    Raises:
        engine.EngineError: what failed, with what had succeeded until then in its `result`.
        DemonstrationError: the new stack does not store or give back traces.
    """
    chosen = choose_engine(choice)
    settings = bootstrap(workspace, report)
    _check_ports(workspace, settings)
    result = _engine(chosen).up(engine_options(workspace), on_event=_steps_to(report))
    is_new = any(step.type == API_KEY_TYPE and step.operation == "create" for step in result.steps)
    settled = _settle(workspace)
    shown = _show(workspace, report) if is_new else None
    return UpResult(engine=chosen, result=result, status=settled, demonstration=shown)


def _settle(workspace: Workspace) -> Status:
    """Return the status as soon as every daemon is ready: one may still notice that another was restarted."""
    deadline = time.monotonic() + SETTLE_S
    while not (found := status(workspace)).healthy and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _check_ports(workspace: Workspace, settings: StackSettings) -> None:
    """Refuse before anything changes, rather than let a daemon fail to bind."""
    ports = {f"ports.{name}": port for name, port in settings.named_ports()}
    check_ports(ports, ours=_sandbox(workspace).members())


def _show(workspace: Workspace, report: Reporter) -> Demonstration:
    values = outputs(workspace, show_secrets=True)
    with task(report, "a thousand traces through the balancer, and back"):
        return demonstrate(values["service_url"], values["api_key"], ca_file=values["ca_file"])


def _steps_to(report: Reporter) -> engine.OnEvent:
    """Tell of every step on a real resource; components are made of those and take no time of their own."""

    def on_event(event: engine.Event) -> None:
        if not isinstance(event, engine.StepEvent) or not event.step.type.startswith("pulumi-python:"):
            return
        if event.step.operation not in ("same", "refresh"):
            phase = {"started": Phase.STARTED, "done": Phase.DONE, "failed": Phase.FAILED}[event.status]
            name = f"{event.step.operation} {event.step.type.rpartition(':')[2]} {event.step.name}"
            report(Progress(task=name, phase=phase, seconds=event.step.seconds))

    return on_event


def down(
    workspace: Workspace, *, keep_data: bool = False, choice: EngineChoice = "auto", report: Reporter = silent
) -> None:
    """Stop the stack. With `keep_data` all else stays, for the next `up`; without, data and state go too."""
    if keep_data:
        with task(report, "stop every daemon"):
            _sandbox(workspace).stop()
        return
    if workspace.backend.exists():
        _engine(choose_engine(choice)).destroy(engine_options(workspace), on_event=_steps_to(report))
    with task(report, "remove data and state"):
        _sandbox(workspace).stop()
        _remove_all(workspace)


def _remove_all(workspace: Workspace) -> None:
    """Remove what the stack owns; the cache with the root filesystem stays, and so does what other stacks own."""
    engine.remove(engine_options(workspace))
    shutil.rmtree(workspace.home, ignore_errors=True)
    workspace.rollout.path.unlink(missing_ok=True)


def outputs(workspace: Workspace, *, show_secrets: bool = False) -> Mapping[str, Any]:
    """Return the stack's outputs from its state, without running the program."""
    return engine.outputs(engine_options(workspace), show_secrets=show_secrets)


def environment(workspace: Workspace) -> dict[str, str]:
    """Return what a plain `pulumi` needs in its environment."""
    return {
        **automation.environment(workspace.backend),
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(workspace.passphrase_file),
    }


def status(workspace: Workspace) -> Status:
    """Look at what runs."""
    settings, rollout = load_file(workspace.config_file), workspace.rollout.read()
    if rollout is None:
        return Status(daemons=[], rollout=None, schema_version=None, fleet_size=settings.fleets.size)
    return Status(
        daemons=daemon_statuses(_sandbox(workspace), settings, rollout, workspace.stack),
        rollout=rollout,
        schema_version=outputs(workspace).get("schema_version"),
        fleet_size=settings.fleets.size,
    )


def _sandbox(workspace: Workspace) -> Sandbox:
    return Sandbox(workspace.home, rootfs_path(workspace.cache))
