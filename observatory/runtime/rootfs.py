"""The root filesystem that every local daemon runs from: Debian 13, unpacked from its packages, never installed.

Packages are extracted without running their maintainer scripts, which needs neither root nor subordinate ids and takes
half the time; the few files that those scripts would have made are written here. The daemons' own files live elsewhere
(`observatory.runtime.sandbox`), so the root filesystem is read-only once built and is shared by all stacks.

    ensure_rootfs(cache: Path, *, progress: Progress = ...) -> Path
    rootfs_path(cache: Path) -> Path                  # where it is or will be; builds nothing
    package_versions(rootfs: Path) -> dict[str, str]  # Debian package -> version
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from observatory.files import locks
from observatory.files.atomic import write_file
from observatory.runtime import bubblewrap, mmdebstrap
from observatory.runtime.errors import RootfsError
from observatory.runtime.processes import process_group

Progress = Callable[[str, float | None], None]
"""Receives what is going on and how much of the whole is done, from 0 to 1, None if unknown."""

SUITE = "trixie"
PACKAGES = (
    # the system: shell, loader, setpriv, tables of names, TLS roots, time zones
    *("base-files", "bash", "bubblewrap", "ca-certificates", "coreutils", "dash", "findutils", "gawk", "grep"),
    *("hostname", "libc-bin", "netbase", "openssl", "procps", "sed", "tar", "tzdata", "util-linux"),
    # the database and what keeps it available
    *("postgresql-17", "postgresql-17-cron", "postgresql-17-pgaudit", "postgresql-17-timescaledb"),
    *("patroni", "python3-etcd", "etcd-client", "etcd-server", "pgbackrest", "pgbouncer"),
    # traffic, cache, supervision
    *("gzip", "haproxy", "logrotate", "python3", "supervisor", "valkey-server", "valkey-tools", "wrk"),
    # monitoring
    *("prometheus", "promtool", "prometheus-alertmanager", "prometheus-node-exporter"),
    *("prometheus-pgbackrest-exporter", "prometheus-pgbouncer-exporter", "prometheus-postgres-exporter"),
    "prometheus-redis-exporter",
)
COMPILED = ("/usr/lib/python3", "/usr/lib/python3.13")
VERSIONS_FILE = "usr/share/observatory/packages"
RECIPE_VERSION = 1  # raise it when the steps below change what they make

PRUNED = (
    *("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/i18n"),
    *("usr/share/lintian", "usr/share/bash-completion", "var/lib/apt", "var/cache"),
)
BASE_FILES = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/bash\n"
        f"{bubblewrap.USER}:x:{bubblewrap.UID}:{bubblewrap.GID}:LLM Observatory:/srv:/bin/bash\n"
        "postgres:x:104:106:PostgreSQL:/srv:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "etc/group": f"root:x:0:\n{bubblewrap.USER}:x:{bubblewrap.GID}:\npostgres:x:106:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/hostname": "observatory\n",
    "etc/resolv.conf": "",  # the host's is mounted over it
}
LINKS = {"usr/bin/awk": "gawk", "etc/localtime": "/usr/share/zoneinfo/Etc/UTC"}
REQUIRED = ("usr/bin/supervisord", "usr/lib/postgresql/17/bin/postgres", "usr/bin/setpriv", "etc/passwd")

SPACE_NEEDED = 2 * 1024**3  # bytes: 0.8 GB unpacked, 0.25 GB of archives meanwhile, and room for data
LOG_LINES = 15
STAGES = {  # what mmdebstrap says when a stage begins: our words, and the share of the time that is over by then
    "running apt-get update": ("Reading Debian's package lists", 0.02),
    "downloading packages": ("Downloading Debian packages", 0.1),
    "extracting archives": ("Unpacking Debian packages", 0.2),
    "cleaning package lists": ("Cleaning up", 0.85),
}
CAUSES = {
    "No space left on device": "the disk is full; free 2 GB, or put the cache elsewhere",
    "Could not resolve": "a package mirror cannot be found; check the network and DNS",
    "Unable to connect": "a package mirror cannot be reached; check the network and proxy",
    "Failed to fetch": "a package could not be downloaded; try again, then check the network and proxy",
    "NO_PUBKEY": "the archive's signature cannot be verified; install a newer debian-archive-keyring",
    "Unable to locate package": "the mirror lacks a package; check which mirror the host's apt is sent to",
}


def rootfs_path(cache: Path) -> Path:
    """Return where the root filesystem is, or will be once `ensure_rootfs` has built it."""
    given = os.environ.get("OBSERVATORY_ROOTFS")
    return Path(given).absolute() if given else cache / f"rootfs-{_recipe_key()}"


def ensure_rootfs(cache: Path, *, progress: Progress = lambda _message, _fraction: None) -> Path:
    """Return the root filesystem in the directory `cache`, building it first if it is not there.

    Safe to call at once from several processes, and after a build that was killed. The environment variable
    `OBSERVATORY_ROOTFS` names a ready one to use instead.

    Raises:
        RootfsError: The build failed (with the last lines of its log and a remedy), or the given one is not usable.
        SandboxUnavailable: This machine does not let us run programs from a root filesystem.
    """
    rootfs = rootfs_path(cache)
    if "OBSERVATORY_ROOTFS" in os.environ:
        return _checked(rootfs)
    if not _missing(rootfs):
        return rootfs
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locks.exclusive(cache / "rootfs.lock") as lock:
            if _missing(rootfs):
                _build(rootfs, lock, progress)
                _remove_others(rootfs)
    except OSError as error:
        raise RootfsError(f"cannot build the root filesystem in {cache}: {error}; 2 GB of disk are needed") from error
    return rootfs


def package_versions(rootfs: Path) -> dict[str, str]:
    """Return the version of each Debian package in `rootfs`, by name; empty if it was not built here."""
    file = rootfs / VERSIONS_FILE
    lines = file.read_text().splitlines() if file.is_file() else []
    archives = (line.removesuffix(".deb").split("_") for line in lines)
    return {name: version.replace("%3a", ":") for name, version, _architecture in archives}


def _missing(rootfs: Path) -> list[str]:
    """Return what a directory lacks to be a root filesystem; somebody may have removed half of it."""
    missing = [name for name in REQUIRED if not (rootfs / name).exists()]
    if not missing and f"\n{bubblewrap.USER}:" not in (rootfs / "etc/passwd").read_text():
        return [f"the user {bubblewrap.USER} in etc/passwd"]
    return missing


def _checked(rootfs: Path) -> Path:
    """Return the user's own `rootfs` if the stack can run from it."""
    if missing := _missing(rootfs):
        raise RootfsError(
            f"OBSERVATORY_ROOTFS={rootfs} is not usable: it lacks {', '.join(missing)}."
            " Unset the variable to have one built."
        )
    return rootfs


def _recipe_key() -> str:
    recipe = [RECIPE_VERSION, SUITE, PACKAGES, BASE_FILES, LINKS, PRUNED]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]


def _build(rootfs: Path, lock: int, progress: Progress) -> None:
    """Build into a directory of another name and rename it, so that `rootfs` is whole or absent."""
    partial = rootfs.with_name(f"{rootfs.name}.partial")
    _remove(partial)
    _remove(rootfs)
    _check_space(rootfs.parent)
    try:
        _extract(partial, lock, progress)
        progress("Preparing the root filesystem", 0.9)
        _configure(partial)
        partial.rename(rootfs)
    finally:
        _remove(partial)
    progress("Root filesystem ready", 1.0)


def _check_space(cache: Path) -> None:
    free = shutil.disk_usage(cache).free
    if free < SPACE_NEEDED:
        raise RootfsError(
            f"the disk of {cache} has {free / 1e9:.1f} GB free; the root filesystem needs {SPACE_NEEDED / 1e9:.1f} GB."
            " Free some space, or put the cache elsewhere."
        )


def _extract(partial: Path, lock: int, progress: Progress) -> None:
    """Run mmdebstrap, which inherits `lock`: while it lives, nobody else builds, even if this process is killed."""
    progress("Preparing to build the root filesystem", 0.0)
    tool = mmdebstrap.find(partial.parent / "mmdebstrap")
    versions = Path(VERSIONS_FILE)
    hook = f'mkdir -p "$1/{versions.parent}" && cd "$1/var/cache/apt/archives" && ls *.deb >"$1/{versions}"'
    command = [*tool.command, "--mode=chrootless", "--variant=extract", "--format=directory"]
    command += [f"--keyring={tool.keyring}", "--skip=check/chrootless", f"--extract-hook={hook}"]
    command += [f"--include={','.join(PACKAGES)}", SUITE, str(partial)]
    log = partial.with_name("rootfs.log")
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    with (
        log.open("w") as file,
        process_group(command, env=environment, stderr=subprocess.STDOUT, pass_fds=[lock]) as process,
    ):
        for line in process.stdout or ():
            file.write(line)
            _report(line, progress)
    if process.returncode != 0:
        raise RootfsError(_failure(log))


def _report(line: str, progress: Progress) -> None:
    for words, (message, fraction) in STAGES.items():
        if words in line:
            progress(message, fraction)


def _failure(log: Path) -> str:
    text = log.read_text(errors="replace")
    cause = next((remedy for words, remedy in CAUSES.items() if words in text), "see the log")
    last = "\n".join(text.splitlines()[-LOG_LINES:])
    return f"cannot build the root filesystem: {cause}.\nThe last lines of {log}:\n{last}"


def _configure(rootfs: Path) -> None:
    """Do what the maintainer scripts would have done, as far as the daemons need it."""
    for name in PRUNED:
        _remove(rootfs / name)
    for name, content in BASE_FILES.items():
        write_file(rootfs / name, content, mode=0o644)
    for name, target in LINKS.items():
        (rootfs / name).unlink(missing_ok=True)
        (rootfs / name).symlink_to(target)
    (rootfs / "srv").mkdir(exist_ok=True)
    authorities = sorted((rootfs / "usr/share/ca-certificates/mozilla").glob("*.crt"))
    bundle = b"".join(file.read_bytes() for file in authorities)
    write_file(rootfs / "etc/ssl/certs/ca-certificates.crt", bundle, mode=0o644)
    _run_inside(rootfs, "/sbin/ldconfig")
    # Here or never: the daemons see this tree read-only, and without bytecode each start compiles everything again.
    _run_inside(rootfs, "/usr/bin/python3", "-m", "compileall", "-q", "-j", "0", *COMPILED)


def _run_inside(rootfs: Path, *command: str) -> None:
    _run(bubblewrap.prepare_command(rootfs, command))


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        output = "\n".join((result.stdout + result.stderr).splitlines()[-LOG_LINES:])
        raise RootfsError(f"cannot prepare the root filesystem: {command[0]} failed:\n{output}")


def _remove_others(rootfs: Path) -> None:
    """Remove root filesystems of older recipes, except those that something still runs from."""
    for other in rootfs.parent.glob("rootfs-*"):
        if other != rootfs and not any(_is_root(other, process) for process in Path("/proc").glob("[0-9]*")):
            _remove(other)


def _is_root(rootfs: Path, process: Path) -> bool:
    try:
        return (process / "root").samefile(rootfs)
    except OSError:  # the process has ended, or is another user's
        return False


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
