"""The scheduler of the `local` stack: backups, log rotation and whatever else has to be done again and again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, ResourceProvider, UpdateResult

from components.dynamic import without_provider
from components.local.machine import Machine, sandbox_of
from observatory import __version__
from observatory.nodes.host_jobs import host_jobs
from observatory.scheduling.scheduler_process import scheduler_ready, start_scheduler, stop_scheduler
from observatory.settings import LocalSettings


@dataclass(frozen=True, kw_only=True)
class SchedulerArgs:
    """The checkout and the stack whose jobs it runs, and what the jobs need."""

    settings: LocalSettings
    machine: Machine
    root: Path
    stack: str


class SchedulerProvider(ResourceProvider):
    """Starts, watches and stops the scheduler's process. Its `diff` looks at the living thing, as a machine's does."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Start it, instead of one that a killed `up` left: that may have other jobs."""
        _start(props)
        return CreateResult(id_=f"{props['home']}/scheduler", outs=without_provider(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Report a change when its jobs are others, or when it does not live; another home replaces it."""
        moved = _olds["home"] != _news["home"]
        changed = without_provider(_olds) != without_provider(_news) or not scheduler_ready(sandbox_of(_news))
        return DiffResult(changes=changed, replaces=["home"] if moved else [], delete_before_replace=True)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Start it again; a job that runs is ended in order, and made up for."""
        _start(_news)
        return UpdateResult(outs=without_provider(_news))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Stop it, and the jobs that it has started."""
        stop_scheduler(sandbox_of(_props))


class Scheduler(Resource, module="local", name="Scheduler"):
    """The process that runs the jobs of the host at their times."""

    def __init__(self, name: str, args: SchedulerArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        props = {
            "home": args.machine.home,
            "rootfs": args.machine.rootfs,
            "root": str(args.root),
            "stack": args.stack,
            "rollback_webhook": args.settings.ports.rollback_webhook,
            "version": __version__,  # a running process cannot import modules that an upgrade has moved
            "jobs": [job.model_dump(mode="json") for job in host_jobs(args.settings)],
        }
        super().__init__(SchedulerProvider(), name, props, opts)


def _start(props: dict[str, Any]) -> None:
    start_scheduler(sandbox_of(props), root=Path(props["root"]), stack=props["stack"])
