"""Enters the root filesystem with bubblewrap, and determines which privileges that needs on this machine.

It tries two ways: a user namespace, in which the caller appears as the user `observatory` and files belong to the
caller; or, for root where user namespaces are refused, root's right to mount. The command then runs as that user, and
files belong to that user. Process and IPC namespaces are the host's: if both were private, two PostgreSQL servers could
open the same data directory.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from observatory.files.ownership import Owner
from observatory.runtime.errors import RootfsError, SandboxUnavailable

UID = GID = 1000
USER = "observatory"
NEEDED = ("usr/bin/bwrap", "usr/bin/setpriv", "usr/bin/true")

_REMEDY = """Remedies:
- Ubuntu 23.10 or newer: sudo apt-get install bubblewrap, and
  sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0
- other hosts: sudo sysctl user.max_user_namespaces=15000 kernel.unprivileged_userns_clone=1
- inside Docker: run the container with --security-opt seccomp=unconfined --security-opt apparmor=unconfined
  --cap-add SYS_ADMIN
- or run the command as root"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One way into the root filesystem: `options` of bubblewrap, a command `prefix` inside, and the files' owner."""

    options: tuple[str, ...]
    prefix: tuple[str, ...] = ()
    owner: Owner | None = None


NAMESPACE = Entry(options=("--unshare-user", "--uid", str(UID), "--gid", str(GID)))
PRIVILEGED = Entry(
    options=("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"),
    prefix=(
        *("/usr/bin/setpriv", "--reuid", str(UID), "--regid", str(GID), "--clear-groups"),
        # Changing the user clears the signal that ends a one-shot command with its caller, unless it is kept.
        *("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--pdeathsig", "keep", "--"),
    ),
    owner=Owner(uid=UID, gid=GID),
)


def command(rootfs: Path, entry: Entry, argv: Sequence[str], *, mounts: Sequence[str] = ()) -> list[str]:
    """Return the command line that runs `argv` in the read-only `rootfs`, with `mounts` as further options."""
    system = ["--ro-bind", str(rootfs), "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]  # noqa: S108
    resolver = ["--ro-bind-try", "/etc/resolv.conf", "/etc/resolv.conf"]
    return [*_program(rootfs), *entry.options, *system, *resolver, *mounts, *entry.prefix, *argv]


def prepare_command(rootfs: Path, argv: Sequence[str]) -> list[str]:
    """Return the command line that runs `argv` as root of a root filesystem that is still being built."""
    identity = () if os.geteuid() == 0 else ("--unshare-user", "--uid", "0", "--gid", "0")
    return [*_program(rootfs), *identity, "--bind", str(rootfs), "/", "--dev", "/dev", "--proc", "/proc", *argv]


@functools.cache
def entry(rootfs: Path) -> Entry:
    """Return the first way into `rootfs` that works on this machine.

    Raises:
        RootfsError: `rootfs` is missing or incomplete.
        SandboxUnavailable: Neither works; the message quotes the kernel's refusal and names the remedies.
    """
    if absent := next((name for name in NEEDED if not (rootfs / name).exists()), None):
        raise RootfsError(
            f"the root filesystem {rootfs} is missing or incomplete: it lacks {absent}",
            remedy="Run `observatory up`: it builds the root filesystem again.",
        )
    refusal = _refusal(rootfs, NAMESPACE)
    if refusal is None:
        return NAMESPACE
    if os.geteuid() == 0 and _refusal(rootfs, PRIVILEGED) is None:
        return PRIVILEGED
    who = "root's privileges here are too few" if os.geteuid() == 0 else "not root"
    raise SandboxUnavailable(f"cannot make a sandbox: user namespaces are refused ({refusal}) and {who}.\n{_REMEDY}")


def _refusal(rootfs: Path, way: Entry) -> str | None:
    """Return why `way` does not work, None if it does."""
    result = subprocess.run(command(rootfs, way, ["/bin/true"]), capture_output=True, text=True, check=False)
    return None if result.returncode == 0 else result.stderr.strip() or f"exit status {result.returncode}"


def _program(rootfs: Path) -> list[str]:
    """Return the host's bubblewrap, or the root filesystem's own, run by its own loader.

    The host's comes first: Ubuntu's AppArmor grants user namespaces by the program's path.
    """
    if found := shutil.which("bwrap"):
        return [found]
    library = next(rootfs.glob("usr/lib/*-linux-gnu"))
    loader = next(library.glob("ld-linux-*"))
    return [str(loader), "--library-path", str(library), str(rootfs / "usr/bin/bwrap")]
