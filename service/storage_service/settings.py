"""Settings of one service process, read from `STORAGE_*` environment variables.

Owns names, defaults and error messages. The version is no setting: it is baked into the artifact (`release`).
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

PREFIX = "STORAGE_"
_LISTEN = re.compile(r"(?P<host>\[[0-9a-fA-F:]+\]|[^:\s]+):(?P<port>\d{1,5})")
_CACHE_URL = re.compile(r"rediss?://(\[[0-9a-fA-F:]+\]|[^:@/\s]+):\d{1,5}/\d{1,5}")
_MAX_PORT = 65535


class SettingsError(Exception):
    """Environment variables that cannot be used; each line names one and what was expected."""


class Listen(BaseModel):
    """Address to accept connections on."""

    model_config = ConfigDict(frozen=True)

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _listen(value: object) -> object:
    match = _LISTEN.fullmatch(str(value))
    if match is None or int(match["port"]) > _MAX_PORT:
        raise ValueError("expected HOST:PORT, such as 127.0.0.1:8000 or [::1]:8000")
    return {"host": match["host"].strip("[]"), "port": int(match["port"])}


def _database_url(value: str) -> str:
    if not value.startswith(("postgresql://", "postgres://")):
        raise ValueError("expected postgresql://USER@HOST:PORT/DATABASE")
    try:
        parameters = conninfo_to_dict(value)
    except psycopg.ProgrammingError:
        # The parser's own message repeats the text, which may hold a password.
        raise ValueError("expected postgresql://USER@HOST:PORT/DATABASE with special characters %-encoded") from None
    if "password" in parameters:
        raise ValueError(f"must hold no password: put it into the file that {PREFIX}DATABASE_PASSWORD_FILE names")
    return value


def _cache_url(value: str) -> str:
    if not _CACHE_URL.fullmatch(value):
        raise ValueError(
            "expected redis://HOST:PORT/NUMBER, or rediss:// for TLS; "
            f"a password goes into the file that {PREFIX}CACHE_PASSWORD_FILE names"
        )
    return value


def _readable(path: Path) -> Path:
    try:
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"expected a readable file: {error}") from None
    return path


Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]
Timeout = Annotated[float, Field(ge=0.1, le=600, allow_inf_nan=False)]
Connections = Annotated[int, Field(ge=1, le=1000)]


class Settings(BaseModel):
    """Everything a process can be told.

    Attributes:
        listen: address to accept HTTP connections on.
        fleet: fleet that the process belongs to.
        database_url: `postgresql://` URL without a password.
        database_password_file: file with the password, or with another user than the URL's on its first line and the
            password on its second, so that both change at once. Read each second and for each connection.
        cache_url: `redis://` URL, or `rediss://` for TLS, without a password, of a Valkey that caches answers;
            without it, none are cached.
        cache_password_file: file whose content, without a final newline, is its password; read for each connection.
        cache_timeout_seconds: longest wait for the cache before a request goes on without it.
        pool_min: connections that are kept open.
        pool_max: connections at most.
        pool_timeout_seconds: longest wait for a free connection before a request is answered 503.
        database_timeout_seconds: longest stay of a request in the database, the wait for a connection included. If the
            server is frozen, up to 10 s more, in which the driver tries to cancel.
        max_pending_writes: write requests in work at once; one more is answered 503.
        buffer_items: items of one table that may wait for their commit; a write of more is answered 503.
        lame_duck_seconds: after SIGTERM the service is not ready but serves on, so that the balancer can notice.
        drain_seconds: after that, time for the requests in flight to finish.
        max_age_days: the oldest `ts` of a trace taken in, which is the retention of the traces.
        max_age_days_telemetry: the same of metrics and logs.
        max_future_seconds: how far ahead of this machine's clock a `ts` may be.
        log_level: least severe level that is logged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: Annotated[Listen, BeforeValidator(_listen)] = Listen(host="127.0.0.1", port=8000)
    fleet: Literal["blue", "green"]
    database_url: Annotated[str, AfterValidator(_database_url)]
    database_password_file: Annotated[Path, AfterValidator(_readable)] | None = None
    cache_url: Annotated[str, AfterValidator(_cache_url)] | None = None
    cache_password_file: Annotated[Path, AfterValidator(_readable)] | None = None
    cache_timeout_seconds: Annotated[float, Field(ge=0.001, le=10, allow_inf_nan=False)] = 0.02
    pool_min: Connections = 1
    pool_max: Connections = 10
    pool_timeout_seconds: Timeout = 5.0
    database_timeout_seconds: Timeout = 10.0
    max_pending_writes: Annotated[int, Field(ge=1, le=10_000)] = 32
    buffer_items: Annotated[int, Field(ge=1000, le=1_000_000)] = 10_000
    lame_duck_seconds: Seconds = 5.0
    drain_seconds: Seconds = 20.0
    max_age_days: Annotated[int, Field(ge=1, le=36_500)] = 90
    max_age_days_telemetry: Annotated[int, Field(ge=1, le=36_500)] = 37
    max_future_seconds: Seconds = 600.0
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Read the `STORAGE_*` variables.

        Raises:
            SettingsError: a variable is missing, unknown or has a value that cannot be used.
        """
        names = (name for name in environment if name.startswith(PREFIX))
        try:
            settings = cls.model_validate({name.removeprefix(PREFIX).lower(): environment[name] for name in names})
        except ValidationError as error:
            raise SettingsError("\n".join(_lines(error))) from None
        if settings.pool_min > settings.pool_max:
            raise SettingsError(f"{PREFIX}POOL_MIN: expected at most {PREFIX}POOL_MAX, which is {settings.pool_max}")
        return settings


def _lines(error: ValidationError) -> list[str]:
    lines = []
    for detail in error.errors(include_url=False, include_input=False):
        name = PREFIX + str(detail["loc"][0]).upper()
        lines.append(f"{name}: {_reason(detail['type'], detail['msg'], name)}")
    return lines


def _reason(kind: str, message: str, name: str) -> str:
    if kind == "missing":
        return "is required and not set"
    if kind == "extra_forbidden":
        known = ", ".join(PREFIX + field.upper() for field in Settings.model_fields)
        hint = "the version is baked into the artifact; " if name == f"{PREFIX}VERSION" else ""
        return f"is no setting: {hint}expected one of {known}"
    return message.removeprefix("Value error, ").replace("Input should", "must")
