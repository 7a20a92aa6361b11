"""The model of a daemon: command, files, environment, ports, readiness and reload; the paths of a machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict

from observatory.security.client_certificate import ClientCertificate

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True, kw_only=True)
class Paths:
    """A machine's directories of configuration, data, sockets, logs and releases, as paths that daemons use.

    `wal` is the directory of PostgreSQL's WAL; None if it has no volume of its own.
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

    @property
    def textfiles(self) -> str:
        """The directory of the metrics of jobs, `<name>.prom`, which node_exporter reads."""
        return f"{self.data}/textfile"


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine's addresses; the default is loopback only.

    Attributes:
        listen: the address that daemons bind.
        address: the address that clients connect to.
        operators: networks from which the superuser and the owner log in, with a password over TLS.
    """

    listen: str = "127.0.0.1"
    address: str = "127.0.0.1"
    operators: tuple[str, ...] = ()


LOOPBACK = Host()


class _Model(BaseModel):
    """Immutable, and read back unchanged from a resource's inputs, where every number is a float."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class TcpReady(_Model):
    """Ready when 127.0.0.1:`port` accepts connections."""

    port: int

    def target(self, _host_path: Callable[[str], Path]) -> dict[str, Any]:
        """Return the arguments of a `Probe`."""
        return {"tcp": ("127.0.0.1", self.port)}


class HttpReady(_Model):
    """Ready when GET 127.0.0.1:`port``path` responds 200, with the fields of `says` in its JSON where that is given.

    A listener that requires a client certificate gets the one in the file `certificate`, over TLS, and is verified by
    the file `authority`. A stack that an earlier version brought up lacks that file, and its listeners require none.
    """

    port: int
    path: str
    certificate: str | None = None
    authority: str | None = None
    says: Mapping[str, str] | None = None

    def target(self, host_path: Callable[[str], Path]) -> dict[str, Any]:
        """Return the arguments of a `Probe`; `host_path` returns this host's path of a file of the machine."""
        if not self.certificate or not self.authority or not host_path(self.certificate).exists():
            return {"http": f"http://127.0.0.1:{self.port}{self.path}", "says": self.says}
        files = ClientCertificate(certificate=host_path(self.certificate), authority=host_path(self.authority))
        return {"http": f"https://127.0.0.1:{self.port}{self.path}", "client": files}


class Unit(_Model):
    """One daemon.

    Attributes:
        name: of the daemon's program or service.
        command: its command line.
        ready: when it is ready.
        priority: units start in this order and stop in the reverse order.
        ports: each port, by the setting that has it.
        files: contents by absolute path. None is secret; secrets are passed beside the unit, as `secret_files`.
        environment: variables that are added to the machine's.
        directories: that are created before it starts.
        reload_signal: applies changed files without a restart; None if they need a restart.
        reload_rebinds: whether `reload_signal` also applies changed ports; otherwise they need a restart.
        check: command that checks the files, for a daemon that refuses wrong ones at a reload and goes on; None for
            other daemons.
        reload_metrics: prefix of its metrics on the last reload, on the listener of `ready`; None without `check`.
        watches_secrets: whether the daemon reads changed secret files itself, without a reload.
        runtime_socket: of HAProxy's runtime API, over which changed certificates are applied: a reload would close the
            connections that clients keep open. None for other daemons.
        stop_signal: stops the daemon.
        stop_seconds: from that signal until it is killed.
        settle_seconds: until it must be ready.
        groups: further groups of the process, on a machine that systemd runs.
        watchdog_seconds: the daemon notifies systemd when it is ready, and at least this often after that; None if it
            does not. The supervisor of `local` probes `ready` instead.
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
    check: tuple[str, ...] | None = None
    reload_metrics: str | None = None
    watches_secrets: bool | None = None
    runtime_socket: str | None = None
    stop_signal: str = "TERM"
    stop_seconds: int = 10
    settle_seconds: int = 30
    groups: tuple[str, ...] | None = None
    watchdog_seconds: int | None = None


def render(template: str, **values: object) -> str:
    """Return the text of `templates/<template>`; an undefined name is an error."""
    return _templates().get_template(template).render(**values)


def yaml_text(document: Any) -> str:
    """Return a document as YAML, by libyaml; apart from `monitoring`'s, which would bring the registry of alerts."""
    text: str = yaml.dump(document, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)
    return text


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
