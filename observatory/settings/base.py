"""What stacks of every platform have in common: the base of all settings, and the groups that both platforms share.

Does not own the settings of one platform (`observatory.settings.local`, `observatory.settings.aws`), nor how they are
read (`observatory.settings.reading`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from observatory.settings.cron import Cron
from observatory.settings.gates import Limits
from observatory.settings.keys import PublicKey
from observatory.settings.windows import Window

VERSION_PATTERN = r"^v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?$"

Port = Annotated[int, Field(ge=1024, le=65535, description="a TCP port that a non-root process may bind")]
Seconds = Annotated[int, Field(ge=0, le=3600)]
Address = Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$")]
Smarthost = Annotated[str, Field(pattern=r"^[a-z0-9.-]+:\d{1,5}$")]
FleetName = Literal["blue", "green"]
FLEETS: tuple[FleetName, FleetName] = ("blue", "green")


def _checked_cron(text: str) -> str:
    Cron.parse(text)
    return text


CronText = Annotated[str, AfterValidator(_checked_cron)]


class Settings(BaseModel):
    """Base of every settings group: frozen, strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)  # building takes 1 ms a group


class Ports(Settings):
    """TCP ports on loopback of the `local` stack. A fleet's instances take consecutive ports from the fleet's own."""

    service: Port = 18080
    service_tls: Port = 18443
    preview: Port = 18081
    balancer_stats: Port = 18082
    postgres: Port = 15432
    pgbouncer: Port = 16432
    valkey: Port = 16379
    patroni: Port = 18008
    etcd_client: Port = 12379
    etcd_peer: Port = 12380
    etcd_metrics: Port = 12381
    blue: Port = 18100
    green: Port = 18200
    trial: Port = 18300
    prometheus: Port = 19090
    alertmanager: Port = 19093
    alert_receiver: Port = 19095
    rollback_webhook: Port = 19096
    node_exporter: Port = 19100
    redis_exporter: Port = 19121
    pgbouncer_exporter: Port = 19127
    postgres_exporter: Port = 19187
    pgbackrest_exporter: Port = 19854


class Database(Settings):
    """Size of PostgreSQL, and of the pooler's pool for each role. Memory is in MiB."""

    name: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")] = "observatory"
    shared_buffers_mb: Annotated[int, Field(ge=16)] = 128
    max_connections: Annotated[int, Field(ge=20, le=5000)] = 100
    pool_size: Annotated[int, Field(ge=1, le=500)] = 20


class Access(Settings):
    """How many days old a password may be before the status asks for its rotation."""

    password_max_age_days: Annotated[int, Field(ge=1, le=3650)] = 90


class Backups(Settings):
    """How many days base backups, and the WAL to restore from them to any time, are kept."""

    retention_days: Annotated[int, Field(ge=1, le=3650)] = 30


class Logs(Settings):
    """Logs are rotated each day, and earlier past `rotate_mb` MiB; rotated ones are kept for `retention_days`."""

    rotate_mb: Annotated[int, Field(ge=1, le=1000)] = 10
    retention_days: Annotated[int, Field(ge=1, le=3650)] = 14


class Schedule(Settings):
    """When the jobs of the host run: cron expressions (minute, hour, day of month, month, day of week) in UTC."""

    backup_full: CronText = "30 1 * * sun"
    backup_differential: CronText = "30 1 * * mon-sat"
    log_rotation: CronText = "17 * * * *"


class Sample(Settings):
    """A masked sample of another database's traces, made again and again: `observatory data sample`.

    `source` is a stack or a connection string without a password, `fraction` that of the traces, `cron` when, in UTC.
    """

    source: Annotated[str, Field(min_length=1)]
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.15
    cron: CronText = "30 3 * * sun"


class Fleets(Settings):
    """Size of each fleet, connections of each instance, and seconds that requests in flight get at a stop."""

    size: Annotated[int, Field(ge=1, le=50)] = 1
    pool_size: Annotated[int, Field(ge=1, le=200)] = 10
    drain_seconds: Seconds = 20


class Delivery(Settings):
    """How versions are brought.

    `bake_seconds` is how long each step is watched; `canary_steps` are the percentages of a canary, `gates` what a
    fleet may do and still be promoted. `trusted_keys` are the Ed25519 public keys, by their owners' names, of whom one
    must have signed a release; a stack on this machine also trusts the key of its own checkout. Minor and major
    versions are deployed within `windows` only, if there are any, and those named in `approval` once somebody else has
    approved.

    An alert of the fleet that was promoted within the last `rollback_window_seconds` proposes the rollback, or performs
    it: `rollback_on_alert`.
    """

    bake_seconds: Annotated[float, Field(ge=0, le=86_400)] = 60
    canary_steps: tuple[Annotated[int, Field(ge=1, le=100)], ...] = (5, 25, 50, 100)
    gates: Limits = Limits()
    rollback_on_alert: Literal["propose", "perform"] = "propose"
    rollback_window_seconds: Annotated[float, Field(ge=0, le=604_800)] = 3600
    windows: tuple[Window, ...] = ()
    approval: tuple[Literal["minor", "major"], ...] = ()
    trusted_keys: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")], PublicKey] = {}


class SlackNotices(Settings):
    """The file with the URL of a Slack channel's incoming webhook."""

    webhook_file: Path


class PagerDutyNotices(Settings):
    """The file with the routing key of an integration by Events API v2; `url` is another in PagerDuty's EU region."""

    routing_key_file: Path
    url: Annotated[str, Field(pattern=r"^https?://\S+$")] = "https://events.pagerduty.com/v2/enqueue"


class EmailNotices(Settings):
    """Mail by a smarthost; a password is sent over TLS only, and stands in a file."""

    to: Address
    sender: Address
    smarthost: Smarthost
    username: str | None = None
    password_file: Path | None = None
    require_tls: bool = True

    @model_validator(mode="after")
    def _logs_in_over_tls(self) -> Self:
        if (self.username is None) != (self.password_file is None):
            raise ValueError("username and password_file go together: set both, or neither")
        if self.username and not self.require_tls:
            raise ValueError("a password needs TLS: remove require_tls: false, or username and password_file")
        return self


class WebhookNotices(Settings):
    """The file with the URL of a program that takes notices as JSON."""

    url_file: Path


class Notifications(Settings):
    """Who is told of deliveries. No secret stands here: each is in a file, relative to the checkout or absolute.

    On `local` the stack's own receiver stands for Slack, PagerDuty and webhook where they are not set.
    """

    slack: SlackNotices | None = None
    pagerduty: PagerDutyNotices | None = None
    email: EmailNotices | None = None
    webhook: WebhookNotices | None = None


class FirstRollout(Settings):
    """First values of the rollout document; ignored as soon as that exists.

    `sha256` is the artifact's digest; without it the release store's is taken.
    """

    version: Annotated[str, Field(pattern=VERSION_PATTERN)] = "v0.1.0"
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    active_fleet: FleetName = "blue"


class SharedSettings(Settings):
    """The groups that a stack has on every platform."""

    access: Access = Access()
    logs: Logs = Logs()
    schedule: Schedule = Schedule()
    sample: Sample | None = None
    delivery: Delivery = Delivery()
    notifications: Notifications = Notifications()
