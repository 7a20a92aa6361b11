"""Settings of a stack on one Linux machine: `platform: local`, the default."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from observatory.settings.base import (
    FLEETS,
    Backups,
    Database,
    EmailNotices,
    FirstRollout,
    Fleets,
    PagerDutyNotices,
    Ports,
    Settings,
    SharedSettings,
    SlackNotices,
    WebhookNotices,
)
from observatory.settings.windows import is_known_in_sandbox


class Cache(Settings):
    """Size of the cache, in MiB."""

    memory_mb: Annotated[int, Field(ge=4)] = 64


def _checked_directory(path: Path) -> Path:
    if not path.is_absolute() or ".." in path.parts or path == Path("/"):
        raise ValueError("expected the absolute path of a directory on this machine, without `..`")
    return path


class BackupRepository(Settings):
    """A backup repository; `path` is its directory where that is outside of the stack's home."""

    path: Annotated[Path, AfterValidator(_checked_directory)] | None = None


class LocalBackups(Backups):
    """Backups of a local stack. `repositories` has the places of the two repositories, in order."""

    repositories: Annotated[tuple[BackupRepository, ...], Field(max_length=2)] = ()

    @model_validator(mode="after")
    def _places_are_apart(self) -> Self:
        places = [each.path for each in self.repositories if each.path]
        for one, other in permutations(places, 2):
            if one.is_relative_to(other):
                raise ValueError(f"repositories: {one} is in {other}; each repository needs a directory of its own")
        return self


class SlackReceiver(SlackNotices):
    """A channel of Slack; `webhook_file` has the URL of its incoming webhook."""

    channel: Annotated[str, Field(pattern=r"^#[a-z0-9_-]{1,79}$")]


class Receivers(Settings):
    """Receivers of alerts, beside the stack's own, which gets every alert. Secrets are in files, as in `notifications`.

    `slack` and `pagerduty` get critical alerts, `slack` and `email` warnings, `ticket` informational alerts, and
    `heartbeat` one request every 10 to 20 s while monitoring works.
    """

    slack: SlackReceiver | None = None
    pagerduty: PagerDutyNotices | None = None
    email: EmailNotices | None = None
    ticket: WebhookNotices | None = None
    heartbeat: WebhookNotices | None = None

    @model_validator(mode="after")
    def _critical_alerts_are_delivered(self) -> Self:
        others = [name for name in ("email", "ticket") if getattr(self, name)]
        if others and not (self.slack or self.pagerduty):
            raise ValueError(
                f"{' and '.join(others)} would get no critical alert: set slack or pagerduty too, which get them"
            )
        return self


class LocalSettings(SharedSettings):
    """All settings of one stack on the platform `local`."""

    platform: Literal["local"] = "local"
    ports: Ports = Ports.model_construct()
    database: Database = Database.model_construct()
    cache: Cache = Cache.model_construct()
    backups: LocalBackups = LocalBackups.model_construct()
    fleets: Fleets = Fleets.model_construct()
    first_rollout: FirstRollout = FirstRollout.model_construct()
    receivers: Receivers = Receivers.model_construct()

    @model_validator(mode="after")
    def _memory_suffices(self) -> Self:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
        wanted = self.database.shared_buffers_mb + self.cache.memory_mb
        if wanted > available:
            raise ValueError(
                f"database.shared_buffers_mb {self.database.shared_buffers_mb} and cache.memory_mb "
                f"{self.cache.memory_mb} exceed this machine's memory of {available} MiB"
            )
        return self

    @model_validator(mode="after")
    def _alertmanager_knows_the_zones(self) -> Self:
        zones = {window.timezone for window in self.maintenance}
        if unknown := sorted(zone for zone in zones if not is_known_in_sandbox(zone)):
            raise ValueError(
                f"maintenance has windows in {', '.join(unknown)}, which Alertmanager does not know: use the zone's "
                "current name, such as America/New_York or Asia/Kolkata"
            )
        return self

    @model_validator(mode="after")
    def _ports_do_not_overlap(self) -> Self:
        owner: dict[int, str] = {}
        for name, port in self.named_ports():
            if port > 65535:  # noqa: PLR2004 - the largest TCP port
                raise ValueError(f"ports.{name} is {port}: fleets.size {self.fleets.size} runs past port 65535")
            if port in owner:
                raise ValueError(f"ports.{owner[port]} and ports.{name} both have port {port}")
            owner[port] = name
        return self

    def named_ports(self) -> Iterator[tuple[str, int]]:
        """Yield every (setting, port) in use, a fleet's instances one by one."""
        for name, port in self.ports:
            if name in FLEETS:
                yield from ((name if i == 0 else f"{name}+{i}", port + i) for i in range(self.fleets.size))
            else:
                yield name, port
