"""The scheduler of the `local` stack, which runs `observatory.nodes.host_jobs`, with watcher, guard and console."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, ResourceProvider, UpdateResult

from components.dynamic import has_drifted, with_drift, without_provider
from components.local.machine import Machine, sandbox_of
from observatory import __version__
from observatory.nodes import Paths
from observatory.nodes.host_jobs import host_jobs
from observatory.nodes.rollback_webhook import rollback_token_file
from observatory.runtime import Drift
from observatory.scheduling.scheduler_process import (
    console_ready,
    guard_ready,
    scheduler_ready,
    start_scheduler,
    stop_scheduler,
    watcher_ready,
)
from observatory.scheduling.webhook import token_drift
from observatory.settings import LocalSettings


@dataclass(frozen=True, kw_only=True)
class SchedulerArgs:
    """The checkout and the stack of the jobs, and the resources that the jobs depend on."""

    settings: LocalSettings
    machine: Machine
    root: Path
    stack: str


class SchedulerProvider(ResourceProvider):
    """Starts and stops the scheduler, the watcher, the guard and the console. Its `diff` checks that all are ready."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Start it. A running one, left by a killed `up`, is stopped first, because its jobs may differ."""
        _start(props)
        return CreateResult(id_=f"{props['home']}/scheduler", outs=without_provider(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Report a change when its jobs change, it is not ready or its token is missing; another home replaces it."""
        moved = _olds["home"] != _news["home"]
        sandbox = sandbox_of(_news)
        ready = all(ready(sandbox) for ready in (scheduler_ready, watcher_ready, guard_ready, console_ready))
        changed = with_drift(_olds, ()) != without_provider(_news) or not ready
        changed = has_drifted("scheduler", _olds, () if changed else _drift(_news)) or changed
        return DiffResult(changes=changed, replaces=["home"] if moved else [], delete_before_replace=True)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Report a missing token as `drift`."""
        return ReadResult(id_=id_, outs=with_drift(props, _drift(props)))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Restart it. A running job is stopped, and the new scheduler runs it again."""
        _start(_news)
        return UpdateResult(outs=without_provider(_news))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Stop the guard, the watcher, the console, the scheduler and its running jobs."""
        stop_scheduler(sandbox_of(_props), root=Path(_props["root"]))


class Scheduler(Resource, module="local", name="Scheduler"):
    """The processes of the host: what runs the scheduled jobs, and the console. Output: `console_url`."""

    def __init__(self, name: str, args: SchedulerArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        props = {
            "home": args.machine.home,
            "rootfs": args.machine.rootfs,
            "root": str(args.root),
            "stack": args.stack,
            "rollback_webhook": args.settings.ports.rollback_webhook,
            "console": args.settings.ports.console,
            "version": __version__,  # a running process cannot import modules that an upgrade has moved
            "jobs": [job.model_dump(mode="json") for job in host_jobs(args.settings)],
        }
        super().__init__(SchedulerProvider(), name, props, opts)
        self.console_url = self.id.apply(lambda _: f"http://127.0.0.1:{args.settings.ports.console}/")


def _drift(props: Mapping[str, Any]) -> tuple[Drift, ...]:
    """Return what is wrong with the file of the token, which the scheduler generates."""
    return token_drift(sandbox_of(props), rollback_token_file(Paths()))


def _start(props: dict[str, Any]) -> None:
    start_scheduler(sandbox_of(props), root=Path(props["root"]), stack=props["stack"])
