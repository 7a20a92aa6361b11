"""The Debian 13 root filesystem that every daemon of the local stack runs from.

Built once per recipe by mmdebstrap without running a single maintainer script, so that no root, subordinate uid or
container engine is needed; the few files that those scripts would have made are written here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections import deque
from collections.abc import Callable
from pathlib import Path

from observatory.machine.errors import RootfsError
from observatory.machine.files import locked, make_directory
from observatory.machine.tools import Tools

SUITE = "trixie"
PACKAGES = (
    *("bash", "coreutils", "dash", "grep", "libc-bin", "openssl", "python3", "sed", "supervisor", "util-linux"),
    *("postgresql-17", "postgresql-17-cron", "postgresql-17-pgaudit", "postgresql-17-timescaledb"),
    *("patroni", "python3-etcd", "etcd-server", "etcd-client"),
    *("haproxy", "pgbackrest", "pgbouncer", "valkey-server"),
    *("prometheus", "prometheus-alertmanager", "promtool"),
    *("prometheus-node-exporter", "prometheus-pgbackrest-exporter", "prometheus-pgbouncer-exporter"),
    *("prometheus-postgres-exporter", "prometheus-redis-exporter"),
)
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
USER, UID = "observatory", 1000

# What maintainer scripts would have made. Names are resolved by these files alone: daemons speak to loopback only.
FILES = {
    "etc/passwd": f"root:x:0:0:root:/:/bin/sh\n{USER}:x:{UID}:{UID}::/srv:/bin/sh\n",
    "etc/group": f"root:x:0:\n{USER}:x:{UID}:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/hostname": "observatory\n",
}
# Bytecode makes Patroni and supervisord start in a fraction of the time; nobody may write it later.
COMPILED = ("/usr/lib/python3.13", "/usr/lib/python3/dist-packages")
LOG_LINES = 15

Progress = Callable[[str], None]


def rootfs_path(cache: Path) -> Path:
    """Return where the root filesystem is, or will be; the variable OBSERVATORY_ROOTFS names a ready one."""
    ready = os.environ.get("OBSERVATORY_ROOTFS")
    return Path(ready) if ready else cache / f"rootfs-{_key()}"


def ensure_rootfs(cache: Path, *, progress: Progress = lambda _message: None) -> Path:
    """Return the root filesystem, building it first where it is missing.

    Concurrent calls build it once. A killed build leaves only a directory that the next one removes.

    Raises:
        RootfsError: it cannot be built, or OBSERVATORY_ROOTFS names something else.
    """
    rootfs = rootfs_path(cache)
    if (rootfs / "usr/bin/supervisord").exists():
        return rootfs
    if "OBSERVATORY_ROOTFS" in os.environ:
        raise RootfsError(f"OBSERVATORY_ROOTFS={rootfs} is not a root filesystem of this project; unset it")
    with locked(cache / "rootfs.lock"):
        if not rootfs.exists():
            _build(rootfs, Tools(directory=cache / "tools"), progress)
    return rootfs


def _key() -> str:
    recipe = json.dumps([SUITE, PACKAGES, LEFT_OUT, FILES, COMPILED])
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def _build(rootfs: Path, tools: Tools, progress: Progress) -> None:
    partial = rootfs.with_name(f"{rootfs.name}.partial")
    _remove(partial)
    make_directory(partial.parent)
    try:
        _unpack_packages(partial, tools, progress)
        for name, content in FILES.items():
            (partial / name).write_text(content)
        progress("linking and compiling")
        _run_inside(partial, tools, "/usr/sbin/ldconfig")
        _run_inside(partial, tools, "/usr/bin/python3", "-m", "compileall", "-q", "-j0", *COMPILED)
        partial.rename(rootfs)
    except OSError as error:
        raise RootfsError(f"{error.filename or partial}: {error.strerror}; 3 GB of free disk are needed") from error
    finally:
        _remove(partial)


def _unpack_packages(partial: Path, tools: Tools, progress: Progress) -> None:
    command = [
        *(str(tools.program("mmdebstrap")), "--mode=chrootless", "--variant=extract", "--format=directory"),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
        *(f"--include={','.join(PACKAGES)}", f"--keyring={tools.keyring()}", SUITE, str(partial)),
    ]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    last: deque[str] = deque(maxlen=LOG_LINES)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,  # the terminal's SIGINT is ours to handle: the partial directory is removed
    ) as process:
        for line in process.stdout or ():
            last.append(line.rstrip())
            if line.startswith("I: "):
                progress(line.removeprefix("I: ").strip())
    if process.returncode:
        raise RootfsError("\n".join(["mmdebstrap could not build the root filesystem; its last lines:", *last]))


def _run_inside(root: Path, tools: Tools, *command: str) -> None:
    """Run a command of a root filesystem that may still be written."""
    bwrap = [str(tools.program("bwrap")), "--unshare-user", "--uid", "0", "--gid", "0", "--bind", str(root), "/"]
    bwrap += ["--dev", "/dev", "--proc", "/proc", "--setenv", "PYTHONDONTWRITEBYTECODE", ""]
    done = subprocess.run([*bwrap, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RootfsError(f"{command[0]} failed in the new root filesystem:\n{done.stdout}{done.stderr}")


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
