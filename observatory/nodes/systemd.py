"""systemd's units of a machine's daemons, rendered from the same `Unit` that the local supervisor runs.

Every daemon runs without privileges; the system is read-only for it, except its own directories.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from observatory.nodes.unit import Paths, Unit, render

DIRECTORY = "/etc/systemd/system"
USER = "observatory"
TASKS_MAX = 4096  # processes and threads of one service: ten times what PostgreSQL has at most here


def service_name(name: str) -> str:
    """Return the name of a unit's service, which no package uses."""
    return f"observatory-{name}.service"


def quoted(text: str, *, command: bool = False) -> str:
    """Return text as one word of a unit file: systemd unquotes words, and expands `%` and, in commands, `$`."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped.replace("$", "$$") if command else escaped}"'


def services(
    units: Iterable[Unit], paths: Paths, *, requires: tuple[str, ...] = (), memory: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the service file of each unit by its path.

    Args:
        units: of one machine; each starts after those of a lower priority.
        paths: of the machine.
        requires: services that prepare the machine and must have succeeded first.
        memory: systemd's `MemoryMax` by a unit's name; a daemon that exceeds it is killed and restarted.
    """
    ordered = sorted(units, key=lambda unit: unit.priority)
    files = {}
    for unit in ordered:
        earlier = tuple(service_name(other.name) for other in ordered if other.priority < unit.priority)
        limit = (memory or {}).get(unit.name)
        files[f"{DIRECTORY}/{service_name(unit.name)}"] = _service(unit, paths, (*requires, *earlier), requires, limit)
    return files


def writable(paths: Paths) -> tuple[str, ...]:
    """Return the directories that processes of `USER` may write."""
    return (*_volumes(paths), paths.run)


def _service(
    unit: Unit, paths: Paths, after: tuple[str, ...], requires: tuple[str, ...], memory_max: str | None
) -> str:
    return render(
        "unit.service.j2",
        unit=unit,
        user=USER,
        after=after,
        requires=requires,
        mounts=tuple(_volumes(paths)),
        writable=writable(paths),
        capabilities=(),
        tasks_max=TASKS_MAX,
        memory_max=memory_max,
        command=" ".join((unit.command[0], *(quoted(word, command=True) for word in unit.command[1:]))),
        environment=[quoted(f"{name}={value}") for name, value in unit.environment.items()],
    )


def directories(units: Iterable[Unit], paths: Paths) -> str:
    """Return tmpfiles.d's lines for the directories that daemons write, which are created at every boot."""
    wanted = dict.fromkeys((*writable(paths), *(path for unit in units for path in unit.directories)))
    return "".join(f"d {path} 0700 {USER} {USER}\n" for path in wanted)


def _volumes(paths: Paths) -> Iterator[str]:
    yield paths.data
    if paths.wal:
        yield paths.wal.rpartition("/")[0]
