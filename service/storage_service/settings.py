"""Settings of one service process, read from `STORAGE_*` environment variables.

Owns names, defaults and error messages. The version is not a setting: it is part of the artifact (`release`).
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .fields import MAX_TEXT

PREFIX = "STORAGE_"
_LISTEN = re.compile(r"(?P<host>\[[0-9a-fA-F:]+\]|[^:\s]+):(?P<port>\d{1,5})")
_CACHE_URL = re.compile(r"rediss?://(\[[0-9a-fA-F:]+\]|[^:@/\s]+):\d{1,5}/\d{1,5}")
_MAX_PORT = 65535


class SettingsError(Exception):
    """Invalid environment variables; each line names one variable and what was expected."""


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
        raise ValueError("expected HOST:PORT, e.g. 127.0.0.1:8000 or [::1]:8000")
    return {"host": match["host"].strip("[]"), "port": int(match["port"])}


def _database_url(value: str) -> str:
    if not value.startswith(("postgresql://", "postgres://")):
        raise ValueError("expected postgresql://USER@HOST:PORT/DATABASE")
    try:
        parameters = conninfo_to_dict(value)
    except psycopg.ProgrammingError:
        # The parser's message repeats the URL, which may contain a password.
        raise ValueError("expected postgresql://USER@HOST:PORT/DATABASE with special characters %-encoded") from None
    if "password" in parameters:
        raise ValueError(f"must not contain a password: write it to a file and set {PREFIX}DATABASE_PASSWORD_FILE")
    return value


def _cache_url(value: str) -> str:
    if not _CACHE_URL.fullmatch(value):
        raise ValueError(
            "expected redis://HOST:PORT/NUMBER, or rediss:// for TLS, without a password: "
            f"write it to a file and set {PREFIX}CACHE_PASSWORD_FILE"
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
    """All settings of a process.

    Attributes:
        listen: address that accepts HTTP connections.
        fleet: fleet of this process.
        database_url: `postgresql://` URL without a password.
        database_password_file: file with the password; or with a user, which replaces the URL's, on the first line and
            the password on the second, so that both change together. Read each second and for each connection.
        cache_url: `redis://` URL of a Valkey, or `rediss://` for TLS, without a password; if unset, nothing is cached.
        cache_password_file: file with the password of the cache, with or without a final newline; read for each
            connection.
        cache_timeout_seconds: maximum wait for the cache before a request continues without it.
        pool_min: connections that stay open.
        pool_max: maximum number of connections.
        pool_timeout_seconds: maximum wait for a free connection; then the response is 503.
        database_timeout_seconds: maximum time of a request in the database, including the wait for a connection. If the
            server hangs, it takes up to 10 s longer, while the driver tries to cancel.
        max_uploads: maximum number of request bodies in progress; the response to others is 429. This limit and the
            next three hold for all keys together, and for each key as long as others need a share of them.
        max_upload_bytes: maximum memory of the request bodies in progress; the response to others is 429.
        max_pending_writes: maximum number of concurrent writes whose body is complete; the response to others is 503.
        buffer_items: maximum number of items of one table that wait for their commit; the response to others is 503.
        max_text_bytes: maximum size, in UTF-8, of a text and of a JSON field in compact form. Before migration 007 the
            database has a limit of its own, 256 KiB.
        upload_seconds: time in which a request body must arrive, besides what `upload_bytes_per_second` allows.
        upload_bytes_per_second: rate at which a request body must arrive.
        max_responses: maximum number of responses in progress to requests with a key; the response to others is 429.
            This limit and the next one are totals. A key may hold as much of each as remains: one key alone a half.
        max_response_bytes: maximum memory of these responses; pages end earlier, and the response to others is 429.
        response_seconds: time in which a client must read a response, besides what `response_bytes_per_second` allows.
        response_bytes_per_second: rate at which a client must read a response.
        lame_duck_seconds: time after SIGTERM in which the service is not ready but accepts requests, so that the
            balancer can notice.
        drain_seconds: time after that for the requests in flight to finish.
        max_age_days: maximum age of the `ts` of a trace, which is the retention of traces.
        max_age_days_telemetry: maximum age of the `ts` of metrics and logs.
        max_future_seconds: maximum time by which a `ts` may be ahead of this machine's clock.
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
    max_uploads: Annotated[int, Field(ge=1, le=10_000)] = 256
    max_upload_bytes: Annotated[int, Field(ge=2**24, le=2**36)] = 64 * 1024 * 1024
    max_pending_writes: Annotated[int, Field(ge=1, le=10_000)] = 32
    buffer_items: Annotated[int, Field(ge=1000, le=1_000_000)] = 10_000
    max_text_bytes: Annotated[int, Field(ge=1024, le=2**24)] = MAX_TEXT
    upload_seconds: Timeout = 10.0
    upload_bytes_per_second: Annotated[int, Field(ge=1024, le=2**30)] = 64 * 1024
    max_responses: Annotated[int, Field(ge=2, le=10_000)] = 256
    max_response_bytes: Annotated[int, Field(ge=2**25, le=2**36)] = 64 * 1024 * 1024
    response_seconds: Timeout = 10.0
    response_bytes_per_second: Annotated[int, Field(ge=1024, le=2**30)] = 64 * 1024
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
            SettingsError: a variable is missing, unknown or invalid.
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
        return "is required but not set"
    if kind == "extra_forbidden":
        names = ", ".join(PREFIX + field.upper() for field in Settings.model_fields)
        hint = "the version is part of the artifact; " if name == f"{PREFIX}VERSION" else ""
        return f"is not a setting: {hint}expected one of {names}"
    return message.removeprefix("Value error, ").replace("Input should", "must")
