"""The user that the daemons of a root user's sandbox run as.

Root's daemons run under a number that no account of the machine uses, so that they can neither signal nor read a
process of another user. The number is drawn when a sandbox's directory is created and is kept in it, as the name tables
that the programs inside read:

    user/passwd, user/group     name the number `observatory`

Another user's sandbox has none: its daemons run as that user.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import secrets
from collections.abc import Iterator
from pathlib import Path

from observatory.files.atomic import replacing, write_file
from observatory.files.ownership import Owner
from observatory.runtime.errors import SandboxUnavailable

NAME = "observatory"
DIRECTORY = "user"
# Above what useradd, FreeIPA, SSSD and systemd assign, and below 2**31: https://systemd.io/UIDS-GIDS
UNASSIGNED = range(2_001_000_000, 2_147_000_000)
# Where a container maps fewer: the numbers of ordinary and of system users.
FEW = range(200, 60_000)
SUBORDINATE = (Path("/etc/subuid"), Path("/etc/subgid"))
DRAWS = 500
READABLE, SEARCHABLE = 0o644, 0o755


def passwd(owner: Owner) -> str:
    """Return the table of users of a sandbox."""
    return (
        "root:x:0:0:root:/root:/bin/bash\n"
        f"{NAME}:x:{owner.uid}:{owner.gid}:LLM Observatory:/srv:/bin/bash\n"
        "postgres:x:104:106:PostgreSQL:/srv:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    )


def group(owner: Owner) -> str:
    """Return the table of groups of a sandbox."""
    return f"root:x:0:\n{NAME}:x:{owner.gid}:\npostgres:x:106:\nnogroup:x:65534:\n"


def recorded(directory: Path) -> Owner | None:
    """Return the user of the sandbox in a directory of the host, None if it has none."""
    try:
        lines = (directory / DIRECTORY / "passwd").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return None
    fields = next(line for line in lines if line.startswith(f"{NAME}:")).split(":")
    return Owner(uid=int(fields[2]), gid=int(fields[3]))


def record(directory: Path, owner: Owner) -> Owner:
    """Record the user of the sandbox in an existing directory, and return it; an earlier record stays."""
    try:
        with replacing(directory / DIRECTORY) as partial:
            partial.mkdir()
            for name, table in (("passwd", passwd), ("group", group)):
                write_file(partial / name, table(owner), mode=READABLE)
            partial.chmod(SEARCHABLE)
    except OSError:  # of two commands that record at once, one does
        if (earlier := recorded(directory)) is None:
            raise
        return earlier
    return owner


def name_tables(directory: Path) -> tuple[str, ...]:
    """Return the options of bubblewrap that mount the recorded name tables."""
    tables = [(directory / DIRECTORY / name, f"/etc/{name}") for name in ("passwd", "group")]
    return tuple(word for file, inside in tables for word in ("--ro-bind", str(file), inside))


def needed() -> bool:
    """Return whether the daemons of this user need another one: it is root, and not the root of a single user.

    The root of a user namespace that has no other user is an ordinary user of the machine.
    """
    return os.geteuid() == 0 and any(len(numbers) > 1 for numbers in _mapped())


def draw() -> Owner:
    """Return an unassigned user.

    Raises:
        SandboxUnavailable: every number that is mapped here is assigned.
    """
    mapped, running = _mapped(), _running()
    subordinate = list(_subordinate())
    for pool in (UNASSIGNED, FEW):
        for number in (secrets.choice(pool) for _ in range(DRAWS)):
            free = number not in running and not any(number in numbers for numbers in subordinate)
            if free and any(number in numbers for numbers in mapped) and not _named(number):
                return Owner(uid=number, gid=number)
    raise SandboxUnavailable(
        "root has no unassigned user for the daemons: every user that this container maps is assigned",
        remedy="Map more users into the container, for example 65536, or run the command as an ordinary user.",
    )


def _mapped() -> list[range]:
    """Return the users that this user namespace maps. The groups are mapped alike in every common container."""
    lines = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    fields = [[int(field) for field in line.split()] for line in lines]
    return [range(first, first + count) for first, _outside, count in fields]


def _subordinate() -> Iterator[range]:
    """Yield the users and groups that are assigned to the containers of a user of this machine."""
    for file in SUBORDINATE:
        with contextlib.suppress(FileNotFoundError):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                _name, first, count = [*line.split(":"), "", ""][:3]
                if first.isdecimal() and count.isdecimal():
                    yield range(int(first), int(first) + int(count))


def _running() -> set[int]:
    """Return the users that have processes, such as the daemons of another stack."""
    users = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError):
            users.add(process.stat().st_uid)
    return users


def _named(number: int) -> bool:
    """Return whether an account or a group of this machine, or of its directory service, has the number."""
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwuid(number))
    with contextlib.suppress(KeyError):
        return bool(grp.getgrgid(number))
    return False
