"""The base of all settings, and the groups that stacks of every platform share.

Does not own the settings of one platform (`observatory.settings.local`, `observatory.settings.aws`), nor how they are
read (`observatory.settings.reading`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from observatory import __version__
from observatory.settings.cron import Cron
from observatory.settings.gate_limits import GateLimits
from observatory.settings.public_keys import PublicKey
from observatory.settings.windows import Window, whole_week

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


MAX_START_SECONDS = 600
MAX_SHARED_BUFFERS_MB = 8_388_607  # PostgreSQL's limit: 1,073,741,823 pages of 8 KiB
POOLER_CLIENTS = 1000  # pgBouncer's max_client_conn
OTHER_CONNECTIONS = 10  # of PostgreSQL beside a pool: superusers, Patroni, exporters, a migration
RESERVED_DATABASES = ("postgres", "template0", "template1", "pgbouncer")  # of PostgreSQL, and pgBouncer's console
_URL = re.compile(r"^[a-z][a-z0-9+.-]*:/", re.IGNORECASE)  # a path has no second slash there
_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@|\bpassword\s*=", re.IGNORECASE)


def _checked_file(path: Path) -> Path:
    if _URL.match(str(path)):
        raise ValueError("is an address, expected the path of a file; write the secret into a file and name that")
    if str(path).startswith("~"):
        raise ValueError("begins with ~, which only a shell replaces; write the whole path")
    return path


SecretFile = Annotated[Path, AfterValidator(_checked_file)]
"""A file that has a secret: absolute or relative to the checkout."""


def _checked_source(source: str) -> str:
    if _PASSWORD.search(source):
        raise ValueError("has a password; put it into ~/.pgpass and leave it out of the connection string")
    return source


class Settings(BaseModel):
    """Base of every settings group: frozen, refuses unknown keys.

    A group is built when it is first validated, which takes 1 ms. Defaults are constructed without that; the tests
    validate each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Ports(Settings):
    """TCP ports on loopback of a local stack. The instances of a fleet have consecutive ports from the fleet's on."""

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
    console: Port = 19097
    node_exporter: Port = 19100
    redis_exporter: Port = 19121
    pgbouncer_exporter: Port = 19127
    postgres_exporter: Port = 19187
    pgbackrest_exporter: Port = 19854


class Database(Settings):
    """Size of PostgreSQL, and of the pooler's pool for each login; memory in MiB."""

    name: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")] = "observatory"
    shared_buffers_mb: Annotated[int, Field(ge=16, le=MAX_SHARED_BUFFERS_MB)] = 128
    max_connections: Annotated[int, Field(ge=20, le=5000)] = 100
    pool_size: Annotated[int, Field(ge=1, le=500)] = 20

    @field_validator("name", mode="after")
    @classmethod
    def _name_is_free(cls, name: str) -> str:
        if name in RESERVED_DATABASES:
            owner = "pgBouncer" if name == "pgbouncer" else "PostgreSQL"
            raise ValueError(f"{name!r} is a database of {owner} itself: choose another name")
        return name

    @model_validator(mode="after")
    def _pool_fits(self) -> Self:
        if self.pool_size > self.pooled_connections:
            raise ValueError(
                f"pool_size is {self.pool_size}, expected at most {self.pooled_connections}: "
                f"max_connections {self.max_connections} less {OTHER_CONNECTIONS} for other sessions"
            )
        return self

    @property
    def pooled_connections(self) -> int:
        """The largest number of sessions that the pools of all logins may hold together."""
        return self.max_connections - OTHER_CONNECTIONS


class Access(Settings):
    """Age of a password in days after which `observatory status` reports it as overdue."""

    password_max_age_days: Annotated[int, Field(ge=1, le=3650)] = 90


class Backups(Settings):
    """Retention of base backups, and of the WAL for point-in-time recovery, in days.

    Migrations use a backup that is younger than `reuse_minutes` instead of a new one; 0: always a new one. They are
    refused unless a restore drill has proven a state of the last `require_drill_days` days; 0: no drill is required.
    """

    retention_days: Annotated[int, Field(ge=1, le=3650)] = 30
    reuse_minutes: Annotated[int, Field(ge=0, le=1440)] = 60
    require_drill_days: Annotated[int, Field(ge=0, le=365)] = 0


class Logs(Settings):
    """Logs are rotated daily, or when larger than `rotate_mb` MiB; rotated logs are kept for `retention_days`."""

    rotate_mb: Annotated[int, Field(ge=1, le=1000)] = 10
    retention_days: Annotated[int, Field(ge=1, le=3650)] = 14


class Schedule(Settings):
    """Schedule of the host jobs: cron expressions (minute, hour, day of month, month, day of week) in UTC."""

    backup_full: CronText = "30 1 * * sun"
    backup_differential: CronText = "30 1 * * mon-sat"
    backup_check: CronText = "*/5 * * * *"
    backup_contents: CronText = "30 4 * * *"
    restore_drill: CronText = "30 2 * * wed"
    log_rotation: CronText = "17 * * * *"
    certificates: CronText = "47 4 * * *"
    clones: CronText = "27 * * * *"


KnownDomain = Literal[
    "provider",
    "model",
    "environment",
    "span_name",
    "span_kind",
    "input_type",
    "finish_reason",
    "log_level",
    "role",
    "tag",
    "key",
]


class Sample(Settings):
    """The masked sample that is copied into this stack: `observatory data sample`.

    `source` is a stack or a connection string without a password, from which the sample is repeated on a schedule;
    `fraction` the share of the traces, `cron` the schedule in UTC. `known_values` are public values that stay as they
    are, by domain; `masks` are those of own columns. `keep_own_data` accepts data that no sample copied.
    """

    source: Annotated[str, Field(min_length=1), AfterValidator(_checked_source)] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.15
    cron: CronText = "30 3 * * sun"
    known_values: dict[KnownDomain, list[str]] = {}
    masks: dict[str, Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]] = {}
    keep_own_data: bool = False


class Fleets(Settings):
    """Size of each fleet, database connections of each instance, and seconds to drain an instance."""

    size: Annotated[int, Field(ge=1, le=50)] = 1
    pool_size: Annotated[int, Field(ge=1, le=200)] = 10
    drain_seconds: Seconds = 20

    @model_validator(mode="after")
    def _pools_fit_into_the_pooler(self) -> Self:
        sessions = len(FLEETS) * self.largest_size * self.pool_size
        if sessions > POOLER_CLIENTS:
            raise ValueError(
                f"pool_size is {self.pool_size}: two fleets of {self.largest_size} instances would hold {sessions} "
                f"sessions, and the pooler accepts {POOLER_CLIENTS}"
            )
        return self

    @property
    def largest_size(self) -> int:
        """The largest number of instances that a fleet can have."""
        return self.size


class Delivery(Settings):
    """How versions are deployed.

    Attributes:
        start_seconds: until an instance must be ready after its start, unless the manifest of its release has a limit.
        bake_seconds: how long gates evaluate each step.
        canary_steps: traffic weights of a canary, in percent, each larger than the one before; 100 follows the last.
        gates: limits of the gates.
        rollback_on_alert: whether an alert after the promotion proposes the rollback or performs it.
        rollback_window_seconds: how long after the promotion an alert counts.
        windows: when minor and major versions may be deployed; none means at any time.
        approval: changes that a second person must approve.
        trusted_keys: Ed25519 public keys by name, one of which must have signed a release; a local stack also trusts
            the key of its own checkout.
        trusted_approvers: Ed25519 public keys of the people who may approve, by their user names.
    """

    start_seconds: Annotated[int, Field(ge=1, le=MAX_START_SECONDS)] = 30
    bake_seconds: Annotated[float, Field(ge=0, le=86_400)] = 60
    canary_steps: tuple[Annotated[int, Field(ge=1, le=100)], ...] = (5, 25, 50, 100)
    gates: GateLimits = GateLimits.model_construct()
    rollback_on_alert: Literal["propose", "perform"] = "propose"
    rollback_window_seconds: Annotated[float, Field(ge=0, le=604_800)] = 3600
    windows: tuple[Window, ...] = ()
    approval: tuple[Literal["minor", "major"], ...] = ()
    trusted_keys: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")], PublicKey] = {}
    trusted_approvers: dict[Annotated[str, Field(pattern=r"^[a-z0-9_][a-z0-9._-]{0,62}$")], PublicKey] = {}

    @field_validator("canary_steps", mode="after")
    @classmethod
    def _canary_grows(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if steps != tuple(sorted(set(steps))):
            raise ValueError("expected each step to be larger than the one before, such as [5, 25, 50, 100]")
        if steps[:1] in ((), (100,)):
            raise ValueError("expected a first step below 100, such as [5, 25, 50, 100]")
        return steps

    @field_validator("trusted_approvers", mode="after")
    @classmethod
    def _one_key_each(cls, approvers: dict[str, str]) -> dict[str, str]:
        for name, key in approvers.items():
            if sharing := [other for other, theirs in approvers.items() if theirs == key and other != name]:
                raise ValueError(f"{name} and {sharing[0]} have the same key: each person needs one of their own")
        return approvers

    @model_validator(mode="after")
    def _approvers_do_not_sign_releases(self) -> Self:
        for name, key in self.trusted_approvers.items():
            if key in self.trusted_keys.values():
                raise ValueError(f"trusted_approvers.{name} is a key of trusted_keys: use another key for approvals")
        return self


class SlackNotices(Settings):
    """A Slack channel; `webhook_file` has the URL of its incoming webhook."""

    webhook_file: SecretFile


class PagerDutyNotices(Settings):
    """A PagerDuty service; the file has the routing key for Events API v2. `url` differs in PagerDuty's EU region."""

    routing_key_file: SecretFile
    url: Annotated[str, Field(pattern=r"^https?://\S+$")] = "https://events.pagerduty.com/v2/enqueue"


class EmailNotices(Settings):
    """Mail through a smarthost; the password is in a file, and is sent over TLS only."""

    to: Address
    sender: Address
    smarthost: Smarthost
    username: str | None = None
    password_file: SecretFile | None = None
    require_tls: bool = True

    @model_validator(mode="after")
    def _logs_in_over_tls(self) -> Self:
        if (self.username is None) != (self.password_file is None):
            raise ValueError("set both username and password_file, or neither")
        if self.username and not self.require_tls:
            raise ValueError("a password requires TLS: remove require_tls: false, or username and password_file")
        return self


class WebhookNotices(Settings):
    """A program that accepts notices as JSON; `url_file` has its URL."""

    url_file: SecretFile


class Notifications(Settings):
    """Where notices of deployments are sent. Secrets are in files, with paths absolute or relative to the checkout.

    On `local` the stack's own receiver replaces Slack, PagerDuty and webhook where they are not set.
    """

    slack: SlackNotices | None = None
    pagerduty: PagerDutyNotices | None = None
    email: EmailNotices | None = None
    webhook: WebhookNotices | None = None


class FirstRollout(Settings):
    """First values of the rollout document; ignored once the document exists.

    `version` is by default that of this product, `sha256` the digest of the artifact in the release store.
    """

    version: Annotated[str, Field(pattern=VERSION_PATTERN)] = f"v{__version__}"
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    active_fleet: FleetName = "blue"


class Alerts(Settings):
    """The thresholds of a stack's alerts; `monitoring.thresholds` says what each means.

    A range leaves out values that are never reached, or always.
    """

    disk_critical_percent: Annotated[int, Field(ge=1, le=50)] = 15
    disk_warning_percent: Annotated[int, Field(ge=2, le=80)] = 30
    pool_wait_seconds: Annotated[int, Field(ge=1, le=9)] = 5  # pgBouncer ends a client after 10 s
    backends_percent: Annotated[int, Field(ge=10, le=99)] = 85
    idle_in_transaction_seconds: Annotated[int, Field(ge=10, le=290)] = 120  # PostgreSQL ends the session after 300 s
    statement_seconds: Annotated[float, Field(ge=0.01, le=600)] = 2
    transaction_seconds: Annotated[int, Field(ge=10, le=86_400)] = 600
    write_latency_seconds: Annotated[float, Field(ge=0.001, le=5)] = 1  # the service measures up to 10 s
    query_latency_seconds: Annotated[float, Field(ge=0.001, le=5)] = 1
    replication_lag_seconds: Annotated[int, Field(ge=1, le=3600)] = 30
    job_overdue_seconds: Annotated[int, Field(ge=60, le=86_400)] = 900
    compression_backlog_chunks: Annotated[int, Field(ge=0, le=1000)] = 2
    aggregate_lag_seconds: Annotated[int, Field(ge=60, le=86_400)] = 900
    database_growth_percent: Annotated[int, Field(ge=1, le=1000)] = 20
    auth_failures: Annotated[int, Field(ge=0, le=10_000)] = 10

    @model_validator(mode="after")
    def _warning_comes_first(self) -> Self:
        if self.disk_warning_percent <= self.disk_critical_percent:
            raise ValueError(
                f"disk_warning_percent is {self.disk_warning_percent}, expected more than disk_critical_percent "
                f"({self.disk_critical_percent}): the warning comes before the page"
            )
        return self


class SharedSettings(Settings):
    """The settings groups that stacks of every platform have.

    In the windows of `maintenance` only critical alerts are delivered.
    """

    access: Access = Access.model_construct()
    logs: Logs = Logs.model_construct()
    schedule: Schedule = Schedule.model_construct()
    sample: Sample | None = None
    delivery: Delivery = Delivery.model_construct()
    notifications: Notifications = Notifications.model_construct()
    maintenance: tuple[Window, ...] = ()
    alerts: Alerts = Alerts.model_construct()

    @field_validator("maintenance", mode="after")
    @classmethod
    def _maintenance_ends(cls, windows: tuple[Window, ...]) -> tuple[Window, ...]:
        if whole_week(windows):
            raise ValueError("covers the whole week, so that no warning would be delivered: leave out some hours")
        return windows
