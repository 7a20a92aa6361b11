"""Typed stack settings: what `Pulumi.<stack>.yaml` says a stack is.

Owns the shape, the defaults and the error messages of stack configuration, and is the only reader of `pulumi.Config`.
What is live (versions, weights) is not a setting: that is the rollout document (`observatory.documents.rollout`).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from observatory.delivery.gates import Limits
from observatory.documents.rollout import FleetName
from observatory.security.signatures import PublicKey
from observatory.settings.cron import Cron
from observatory.settings.windows import Window

PROJECT = "llm-observatory"
# What the CLI itself keeps in a stack's file, and whose settings other than ours may stand there.
FILE_KEYS = ("config", "encryptionsalt", "encryptedkey", "secretsprovider", "environment")
FOREIGN_NAMESPACES = ("pulumi", "aws", "kubernetes", "postgresql")
VERSION_PATTERN = r"^v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?$"

Port = Annotated[int, Field(ge=1024, le=65535, description="a TCP port that a non-root process may bind")]
Seconds = Annotated[int, Field(ge=0, le=3600)]
Address = Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$")]
Smarthost = Annotated[str, Field(pattern=r"^[a-z0-9.-]+:\d{1,5}$")]
FLEETS: tuple[FleetName, FleetName] = ("blue", "green")


def _checked_cron(text: str) -> str:
    Cron.parse(text)
    return text


CronText = Annotated[str, AfterValidator(_checked_cron)]


class SettingsError(Exception):
    """Stack configuration that cannot be used; the message names the file, the key and what was expected."""


class Settings(BaseModel):
    """Base of every settings group: frozen, strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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


class Cache(Settings):
    """Size of the cache, in MiB."""

    memory_mb: Annotated[int, Field(ge=4)] = 64


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


class StackSettings(Settings):
    """All settings of one stack on the platform `local`, which `observatory.settings.aws` builds on.

    Attributes:
        NOT_HERE: dotted settings that a platform built on this one does not have.
    """

    NOT_HERE: ClassVar[frozenset[str]] = frozenset()

    platform: Literal["local", "aws"] = "local"
    ports: Ports = Ports()
    database: Database = Database()
    access: Access = Access()
    cache: Cache = Cache()
    backups: Backups = Backups()
    logs: Logs = Logs()
    schedule: Schedule = Schedule()
    sample: Sample | None = None
    fleets: Fleets = Fleets()
    delivery: Delivery = Delivery()
    notifications: Notifications = Notifications()
    first_rollout: FirstRollout = FirstRollout()

    @model_validator(mode="after")
    def _ports_do_not_overlap(self) -> Self:
        owner: dict[int, str] = {}
        for name, port in self.named_ports():
            if port > 65535:  # noqa: PLR2004 - the largest TCP port
                raise ValueError(f"ports.{name} is {port}: fleets.size {self.fleets.size} runs past port 65535")
            if port in owner:
                raise ValueError(f"ports.{owner[port]} and ports.{name} both name port {port}")
            owner[port] = name
        return self

    def named_ports(self) -> Iterator[tuple[str, int]]:
        """Yield every (setting, port) in use, a fleet's instances one by one."""
        for name, port in self.ports.model_dump().items():
            if name in FLEETS:
                yield from ((name if i == 0 else f"{name}+{i}", port + i) for i in range(self.fleets.size))
            else:
                yield name, port


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """A stack's configuration file: its path, its project settings by key, and the line each dotted key stands on."""

    path: Path
    values: Mapping[str, Any]
    lines: Mapping[str, int]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a `Pulumi.<stack>.yaml`; a missing file has no values.

        Raises:
            SettingsError: the file is not readable, not of the form that `pulumi config` writes, or has a key twice.
        """
        if not path.exists():
            return cls(path=path, values={}, lines={})
        try:
            text = path.read_text(encoding="utf-8")
            document = yaml.safe_load(text) or {}
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SettingsError(f"{path.name}: cannot be read: {error}") from error
        _check_form(path.name, document, root)
        values = {str(key): value for key, value in (document.get("config") or {}).items()}
        own = {_own_key(key): value for key, value in values.items() if _own_key(key)}
        return cls(path=path, values=own, lines=dict(_key_lines(root)))


def _check_form(file: str, document: Any, root: yaml.Node | None) -> None:
    """Refuse what the CLI would pass over in silence."""
    for place, key in _duplicates(root):
        raise SettingsError(f"{file}:{place}: {key}: this key stands here a second time; keep one")
    if not isinstance(document, dict) or not isinstance(document.get("config") or {}, dict):
        raise SettingsError(f"{file}: expected a mapping with the key 'config', as `pulumi config` writes it")
    for key in document:
        if key not in FILE_KEYS:
            raise SettingsError(f"{file}: {key}: unknown key; expected one of {', '.join(FILE_KEYS)}")
    for key in document.get("config") or {}:
        namespace = str(key).rpartition(":")[0] or PROJECT
        if namespace not in (PROJECT, *FOREIGN_NAMESPACES):
            raise SettingsError(f"{file}: {key}: unknown namespace {namespace!r}; this project's is {PROJECT!r}")


def _duplicates(node: yaml.Node | None) -> Iterator[tuple[int, str]]:
    """Yield (line, key) of every key that a mapping has already; YAML would keep the last without a word."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _duplicates(item)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if str(key.value) in seen:
            yield key.start_mark.line + 1, str(key.value)
        seen.add(str(key.value))
        yield from _duplicates(value)


def _own_key(key: str) -> str:
    """Return this project's setting that a key names, or nothing; as in the CLI, a bare key is the project's."""
    namespace, _, name = key.rpartition(":")
    return name if namespace in ("", PROJECT) else ""


def _key_lines(root: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """Yield (dotted key below `config`, line counted from 1)."""
    if not isinstance(root, yaml.MappingNode):
        return
    for key, value in root.value:
        if key.value == "config":
            yield from _nested_lines(value, "")


def _nested_lines(node: yaml.Node, above: str) -> Iterator[tuple[str, int]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        dotted = f"{above}{key.value}" if above else _own_key(str(key.value))
        yield dotted, key.start_mark.line + 1
        yield from _nested_lines(value, f"{dotted}.")


def load_file(path: Path) -> StackSettings:
    """Return the settings of a stack's configuration file.

    Raises:
        SettingsError: an unknown, mistyped or contradictory setting; names file, line, key and what was expected.
    """
    file = ConfigFile.read(path)
    return _validate(file.values, file.path.name, file.lines)


def load_program() -> StackSettings:
    """Return the settings that the running Pulumi program was given, by whichever engine.

    Raises:
        SettingsError: as `load_file`, without lines, since the engine passes values only.
    """
    import pulumi  # noqa: PLC0415 - the command reads settings without paying for the SDK's import
    from pulumi.runtime.config import CONFIG  # noqa: PLC0415

    values = {_own_key(key): _decode(value) for key, value in CONFIG.get().items() if _own_key(key)}
    return _validate(values, f"Pulumi.{pulumi.get_stack()}.yaml", {})


def _decode(value: Any) -> Any:
    """Structured values reach a program as JSON text; plain text stays what it is."""
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return value


def _validate(values: Mapping[str, Any], file: str, lines: Mapping[str, int]) -> StackSettings:
    model = _model(values.get("platform"))
    problems = list(_of_another_platform(model, values, file, lines))
    try:
        # As JSON, since only there a mapping may be a group of settings and yet `true` be no number.
        settings = model.model_validate_json(json.dumps(dict(values), default=str), strict=True)
    except ValidationError as error:
        problems += [_describe(model, problem, file, lines) for problem in error.errors()]
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def _model(platform: object) -> type[StackSettings]:
    if platform != "aws":
        return StackSettings
    from observatory.settings.aws import AwsSettings  # noqa: PLC0415 - built on this module

    return AwsSettings


def _of_another_platform(
    model: type[StackSettings], values: Mapping[str, Any], file: str, lines: Mapping[str, int]
) -> Iterator[str]:
    """Yield what is wrong with settings that the platform's model has inherited and does not use."""
    for key in sorted(model.NOT_HERE):
        group, _, name = key.rpartition(".")
        within = values.get(group) if group else values
        if isinstance(within, Mapping) and name in within:
            yield f"{_place(key, file, lines)}: {PROJECT}:{key}: {_FOREIGN.format(other='local', own='aws')}"


_FOREIGN = "a setting of the platform {other!r}; this stack's is {own!r}"
_Location: TypeAlias = tuple[int | str, ...]


def _describe(model: type[StackSettings], problem: Any, file: str, lines: Mapping[str, int]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    place = _place(key, file, lines)
    name = f"{PROJECT}:{key}" if key else f"{PROJECT}:*"
    if problem["type"] == "extra_forbidden":
        return f"{place}: {name}: {_unknown(model, problem['loc'])}"
    if problem["type"] == "missing":
        return f"{place}: {name}: is required and not set"
    expected = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("model_type", "model_attributes_type"):
        expected = "Expected a group of settings"
    given = "" if problem["type"] == "value_error" else f" (given: {problem['input']!r})"
    return f"{place}: {name}: {expected[0].lower()}{expected[1:]}{given}"


def _place(key: str, file: str, lines: Mapping[str, int]) -> str:
    """Return file and line of a key, or of the nearest group above it that stands there."""
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return f"{file}:{lines[key]}" if key else file


def _unknown(model: type[StackSettings], location: _Location) -> str:
    """Say whose setting it is, else name the closest one, or all there are at that place."""
    name = str(location[-1])
    if model is StackSettings and name in _names(_model("aws"), location):
        return _FOREIGN.format(other="aws", own="local")
    known = _names(model, location)
    if not known:
        return "unknown setting"
    close = difflib.get_close_matches(name, known, n=1)
    return "unknown setting" + (f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}")


def _names(model: type[StackSettings], location: _Location) -> list[str]:
    """Return the settings of the group that a location is in."""
    group: type[BaseModel] = model
    for part in location[:-1]:
        field = group.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        group = field.annotation
    above = ".".join(str(part) for part in location[:-1])
    return sorted(name for name in group.model_fields if f"{above}.{name}".lstrip(".") not in model.NOT_HERE)
