"""Tries to leave its sandbox, and prints as JSON what it could do.
Arguments: a process of the host, a private file and a key of the operator, and the attempts to leave out.

It runs inside, with Debian's Python and its standard library only.
"""

import ctypes
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

PTRACE_ATTACH = 16
KEYCTL = {"x86_64": 250, "aarch64": 219}
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: bytes | int | None) -> None:
    """Call a function of the C library; raise OSError if it fails."""
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def write(path: str) -> None:
    with Path(path).open("ab"):
        pass


def read(path: str) -> None:
    with Path(path).open("rb") as file:
        file.read(1)


def enter(path: str) -> None:
    list(Path(path).iterdir())


def become_root(program: str) -> None:
    if subprocess.run([program, "-u"], capture_output=True, text=True, check=True).stdout.strip() != "0":
        raise PermissionError("it ran without root's rights")


def have_capabilities(*sets: str) -> None:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    if not any(int(lines[name], 16) for name in sets) and lines["NoNewPrivs"].strip() == "1":
        raise PermissionError("none")


def read_key(number: int) -> None:
    """Read a key by KEYCTL_READ."""
    if libc.syscall(KEYCTL.get(platform.machine(), -1), 11, number, None, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


pid, private, key, left_out = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:]
attempts: dict[str, Callable[[], None]] = {
    "change the kernel's settings": lambda: write("/proc/sys/kernel/core_pattern"),
    "change settings of the network": lambda: write("/proc/sys/net/ipv4/ip_forward"),
    "restart the machine": lambda: write("/proc/sysrq-trigger"),
    "read the kernel's memory": lambda: read("/proc/kcore"),
    "read the kernel's log": lambda: read("/proc/kmsg"),
    "list the kernel's keys": lambda: read("/proc/keys"),
    "read a key of the operator's session": lambda: read_key(key),
    "mount": lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "signal": lambda: os.kill(pid, 0),
    "trace": lambda: call("ptrace", PTRACE_ATTACH, pid, None, None),
    "read an environment": lambda: read(f"/proc/{pid}/environ"),
    "read a memory": lambda: read(f"/proc/{pid}/mem"),
    "enter a root directory": lambda: enter(f"/proc/{pid}/root"),
    "enter a working directory": lambda: enter(f"/proc/{pid}/cwd"),
    "read a file of the host": lambda: read(private),
    "read a file of the operator's home": lambda: enter(str(Path(private).parent)),
    "write to the root filesystem": lambda: write("/usr/bin/escaped"),
    "write to the name tables": lambda: write("/etc/passwd"),
    "write beside its directory": lambda: write("/escaped"),
    "become root by a setuid program": lambda: become_root("/srv/data/setuid-id"),
    "become root": lambda: os.setuid(0),
    "keep a capability": lambda: have_capabilities("CapInh", "CapPrm", "CapEff", "CapAmb"),
    "gain a capability": lambda: have_capabilities("CapBnd"),
}
done = []
for name in attempts.keys() - set(left_out):
    try:
        attempts[name]()
    except (OSError, subprocess.SubprocessError):
        continue
    done.append(name)
sys.stdout.write(json.dumps(done) + "\n")
