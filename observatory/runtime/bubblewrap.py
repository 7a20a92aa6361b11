"""Enters the root filesystem with bubblewrap, and determines which privileges that needs on this machine.

An ordinary user enters by a user namespace, in which the caller appears as the user `observatory` and files belong to
the caller. Root enters by its right to mount, and the command then runs as the unassigned user that is recorded in the
sandbox's directory (`observatory.runtime.sandbox_user`), to whom the files belong. Neither can gain a privilege inside,
write to the kernel's settings, or read another user's process. Process and IPC namespaces are the host's: if both were
private, two PostgreSQL servers could open the same data directory.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from observatory.files.ownership import Owner
from observatory.runtime import sandbox_user
from observatory.runtime.errors import RootfsError, SandboxUnavailable

WITH_PARENT = "--die-with-parent"  # of the `mounts` of a command that ends with its caller
UID = GID = 1000  # of an ordinary user inside, and of the root filesystem's own name tables
USER = sandbox_user.NAME
NEEDED = ("usr/bin/bwrap", "usr/bin/setpriv", "usr/bin/true", "usr/bin/python3")
# Of /proc, as runc has them: https://github.com/opencontainers/runc/blob/main/libcontainer/specconv/example.go
# The kernel lets its root write to most of them, whichever capabilities a process has dropped.
READ_ONLY = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs")
MASKED = (
    *("/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/key-users", "/proc/kmsg", "/proc/kpagecount"),
    *("/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi"),
)

# The caller's session keyring, with its Kerberos tickets and other keys, is left behind: a process that possesses it
# reads its keys whatever its user is. Where keyctl(2) is refused, the keys cannot be read either.
_JOIN_NEW_SESSION = 1  # KEYCTL_JOIN_SESSION_KEYRING of linux/keyctl.h
_SET_PDEATHSIG = 1  # PR_SET_PDEATHSIG of linux/prctl.h
_KEYCTL = {"x86_64": 250, "aarch64": 219}
_NEW_KEYRING = f"""
import ctypes, os, sys
ctypes.CDLL(None).syscall({_KEYCTL.get(platform.machine(), -1)}, {_JOIN_NEW_SESSION}, None)
try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError as error:
    sys.exit(f"{{sys.argv[1]}}: {{error.strerror}}")
"""
# The kernel sends a parent-death signal with the rights of the process that died. bubblewrap's has none that reach the
# user of root's sandbox, so a process of that user waits for its end instead, and ends what runs with it.
_ENDING_WITH_PARENT = f"""
import ctypes, os, select, signal, sys
libc = ctypes.CDLL(None)
libc.syscall({_KEYCTL.get(platform.machine(), -1)}, {_JOIN_NEW_SESSION}, None)
own, caller = os.getpid(), int(sys.argv.pop(1))
ends = select.poll()
try:
    above = [os.pidfd_open(pid) for pid in (caller, os.getppid())]
except ProcessLookupError:  # it has ended already
    sys.exit(1)
child = os.fork()
if child == 0:
    libc.prctl({_SET_PDEATHSIG}, signal.SIGKILL)
    if os.getppid() != own:
        os._exit(1)
    try:
        os.execvp(sys.argv[1], sys.argv[1:])
    except OSError as error:
        print(f"{{sys.argv[1]}}: {{error.strerror}}", file=sys.stderr, flush=True)
        os._exit(1)
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)  # of the terminal, whose whole group gets them
signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
for descriptor in (*above, os.pidfd_open(child)):
    ends.register(descriptor)
if set(above) & set(dict(ends.poll())):
    os.killpg(0, signal.SIGKILL)
status = os.waitpid(child, 0)[1]
if os.WIFSIGNALED(status):
    signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
    os.kill(own, os.WTERMSIG(status))
os._exit(os.waitstatus_to_exitcode(status))
"""
_REMEDY = """Remedies:
- Ubuntu 23.10 or newer: sudo apt-get install bubblewrap, and
  sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0
- other hosts: sudo sysctl user.max_user_namespaces=15000 kernel.unprivileged_userns_clone=1
- inside Docker: run the container with --security-opt seccomp=unconfined --security-opt apparmor=unconfined
  --cap-add SYS_ADMIN
- or run the command as root"""
_REMEDY_OF_ROOT = """Remedies:
- inside Docker: run the container with --security-opt seccomp=unconfined --security-opt apparmor=unconfined
  --cap-add SYS_ADMIN
- or run the command as an ordinary user, where user namespaces are allowed"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One way into the root filesystem: `options` of bubblewrap, a command `prefix` inside, and the files' owner.

    `mounts` come after those of the root filesystem.
    """

    options: tuple[str, ...]
    mounts: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    owner: Owner | None = None


NAMESPACE = Entry(options=("--unshare-user", "--uid", str(UID), "--gid", str(GID)))


def privileged(owner: Owner, mounts: tuple[str, ...] = ()) -> Entry:
    """Return the way in of root, for commands that run as `owner`."""
    return Entry(
        options=(
            *("--cap-drop", "ALL"),
            *("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"),
        ),
        mounts=mounts,
        prefix=(
            *("/usr/bin/setpriv", "--reuid", str(owner.uid), "--regid", str(owner.gid), "--clear-groups"),
            *("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"),
        ),
        owner=owner,
    )


def command(rootfs: Path, entry: Entry, argv: Sequence[str], *, mounts: Sequence[str] = ()) -> list[str]:
    """Return the command line that runs `argv` in the read-only `rootfs`, with `mounts` as further options."""
    system = ["--ro-bind", str(rootfs), "/", "--dev", "/dev", "--proc", "/proc", *_kernel_mounts()]
    # Root makes these directories, and another user writes to them.
    writable = [word for path in ("/tmp", "/dev/shm") for word in ("--perms", "1777", "--tmpfs", path)]  # noqa: S108
    ending = entry.owner and WITH_PARENT in mounts
    script = [_ENDING_WITH_PARENT, str(os.getpid())] if ending else [_NEW_KEYRING]
    resolver = ["--ro-bind-try", "/etc/resolv.conf", "/etc/resolv.conf"]
    return [
        *(*_program(rootfs), *entry.options, *system, *writable, *resolver),
        *(*entry.mounts, *mounts, *entry.prefix),
        *("/usr/bin/python3", "-I", "-S", "-c", *script, *argv),
    ]


def prepare_command(rootfs: Path, argv: Sequence[str]) -> list[str]:
    """Return the command line that runs `argv` as root of a root filesystem that is still being built.

    It has no capability, no network, and no process but its own.
    """
    identity = () if os.geteuid() == 0 else ("--unshare-user", "--uid", "0", "--gid", "0")
    private = ("--cap-drop", "ALL", "--unshare-pid", "--unshare-ipc", "--unshare-net", "--die-with-parent")
    system = ("--bind", str(rootfs), "/", "--dev", "/dev", "--proc", "/proc", *_kernel_mounts())
    return [*_program(rootfs), *identity, *private, *system, *argv]


def entry(rootfs: Path, directory: Path) -> Entry:
    """Return the way into `rootfs` for the sandbox of a directory, whose user is recorded there if it has one.

    Raises:
        RootfsError: `rootfs` is missing or incomplete.
        SandboxUnavailable: It does not work; the message quotes the kernel's refusal and names the remedies.
    """
    if owner := sandbox_user.recorded(directory):
        return _working(rootfs, privileged(owner, sandbox_user.name_tables(directory)))
    return _working(rootfs, NAMESPACE)


def former_entry(rootfs: Path, owner: Owner | None) -> Entry:
    """Return the way into `rootfs` of a sandbox that release 0.1.0 made as root: its daemons still run like that."""
    return _working(rootfs, privileged(owner) if owner else NAMESPACE)


def check(rootfs: Path, owner: Owner) -> None:
    """Raise `SandboxUnavailable` if commands cannot run as `owner` in `rootfs`."""
    _working(rootfs, privileged(owner))


@functools.cache
def _working(rootfs: Path, way: Entry) -> Entry:
    """Return `way` if it works on this machine."""
    check_complete(rootfs)
    refusal = _refusal(rootfs, way)
    if refusal is None:
        return way
    if way.owner:
        raise SandboxUnavailable(f"cannot make a sandbox: root may not mount here ({refusal}).\n{_REMEDY_OF_ROOT}")
    raise SandboxUnavailable(f"cannot make a sandbox: user namespaces are refused ({refusal}).\n{_REMEDY}")


@functools.cache
def _kernel_mounts() -> tuple[str, ...]:
    """Return the options that keep the kernel's settings read-only and hide its memory and keys."""
    read_only = [word for path in READ_ONLY if Path(path).exists() for word in ("--ro-bind", path, path)]
    for path in map(Path, MASKED):
        if path.is_dir():
            read_only += ["--tmpfs", str(path), "--remount-ro", str(path)]
        elif path.exists():
            read_only += ["--ro-bind", "/dev/null", str(path)]
    return tuple(read_only)


def check_complete(rootfs: Path) -> None:
    """Check that a root filesystem has what a sandbox needs; it may have been removed.

    Raises:
        RootfsError: `rootfs` is missing or incomplete.
    """
    if absent := next((name for name in NEEDED if not (rootfs / name).exists()), None):
        raise RootfsError(
            f"the root filesystem {rootfs} is missing or incomplete: it lacks {absent}",
            remedy="Run `observatory up`: it builds the root filesystem again.",
        )


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
