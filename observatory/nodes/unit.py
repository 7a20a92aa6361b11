"""What every daemon of a machine has in common: command, files, environment, readiness, and how it reloads."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Where a machine keeps configuration, data, sockets, logs and releases, as the daemons see it.

    `wal` is the directory of PostgreSQL's WAL where that has a volume of its own.
    """

    config: str = "/srv/etc"
    data: str = "/srv/data"
    run: str = "/srv/run"
    log: str = "/srv/log"
    releases: str = "/srv/releases"
    wal: str | None = None

    @property
    def postgres_socket(self) -> str:
        """The directory of PostgreSQL's unix socket."""
        return f"{self.run}/postgresql"


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine on its network, by default one that nobody else reaches.

    Attributes:
        listen: the address that daemons bind.
        address: by which others reach them.
        operators: networks from which the superuser and the owner log in, with a password over TLS.
    """

    listen: str = "127.0.0.1"
    address: str = "127.0.0.1"
    operators: tuple[str, ...] = ()


LOOPBACK = Host()


class _Model(BaseModel):
    """Immutable, and read back unchanged from a resource's inputs, where every number is a float."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TcpReady(_Model):
    """Ready when something accepts connections on 127.0.0.1:`port`."""

    port: int

    def target(self) -> dict[str, Any]:
        """Return what a probe looks at."""
        return {"tcp": ("127.0.0.1", self.port)}


class HttpReady(_Model):
    """Ready when GET 127.0.0.1:`port``path` answers 200."""

    port: int
    path: str

    def target(self) -> dict[str, Any]:
        """Return what a probe looks at."""
        return {"http": f"http://127.0.0.1:{self.port}{self.path}"}


class Unit(_Model):
    """One daemon.

    `files` maps absolute paths to contents; none is secret, secrets are passed beside the unit as `secret_files`.
    `ports` maps the setting that chose each port to the port. `reload_signal` applies changed files without a restart;
    without it they take a restart, and so do changed ports unless `reload_rebinds`. With `watches_secrets` changed
    secret files take neither: the daemon looks at them itself. `settle_seconds` bounds the wait
    for readiness. With `watchdog_seconds` the daemon tells systemd that it is up, and at least so often that it lives;
    the supervisor looks by itself. Units start in the order of `priority` and stop in the reverse.
    """

    name: str
    command: tuple[str, ...]
    ready: TcpReady | HttpReady
    priority: int
    ports: Mapping[str, int]
    files: Mapping[str, str] = {}
    environment: Mapping[str, str] = {}
    directories: tuple[str, ...] = ()
    reload_signal: str | None = None
    reload_rebinds: bool = False
    watches_secrets: bool | None = None
    stop_signal: str = "TERM"
    stop_seconds: int = 10
    settle_seconds: int = 30
    watchdog_seconds: int | None = None


def render(template: str, **values: object) -> str:
    """Return the text of `templates/<template>`; an undefined name is an error."""
    return _templates().get_template(template).render(**values)


@functools.cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415 - only where a file is made

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - configuration files, not HTML
    )
