"""The root filesystem that every local daemon runs from: Debian 13, unpacked from its packages.

Packages are extracted without their maintainer scripts, which needs neither root nor subordinate ids and takes half the
time; this module writes the few files that those scripts would create. The daemons' own files are elsewhere
(`observatory.runtime.sandbox`), so a complete root filesystem is read-only and all stacks share it.

    rootfs_path(cache, packages) -> Path               # where it is or will be; builds nothing
    ensure_rootfs(cache, packages, *, progress=) -> Path
    package_versions(rootfs) -> dict[str, str]         # Debian package -> version

It is built in the directory that all checkouts of the user share (`observatory.files.cache`), under a name that is a
digest of its recipe, and the checkout's own cache links to it. A checkout that has its own root filesystem keeps it. If
the shared directory cannot be used, a checkout builds its own.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from observatory.files import locks
from observatory.files.atomic import replacing, write_file
from observatory.files.cache import (
    VARIABLE,
    belongs_to_this_user,
    mark_used,
    remove_unused,
    shared_directory,
    shared_or,
)
from observatory.files.ownership import Owner
from observatory.runtime import bubblewrap, mmdebstrap, sandbox_user
from observatory.runtime.errors import RootfsError
from observatory.runtime.processes import process_group

Progress = Callable[[str, float | None], None]
"""Receives the current step, and the finished share of all steps from 0 to 1; None if unknown."""

SUITE = "trixie"
# The base: shell, loader, setpriv, name tables, TLS roots, time zones, the supervisor and its Python.
SYSTEM_PACKAGES = (
    *("base-files", "bash", "bubblewrap", "ca-certificates", "coreutils", "dash", "findutils", "gawk", "grep", "gzip"),
    *("hostname", "libc-bin", "netbase", "openssl", "procps", "python3", "sed", "supervisor", "tar", "tzdata"),
    "util-linux",
)
COMPILED = ("/usr/lib/python3", "/usr/lib/python3.13")
VERSIONS_FILE = "usr/share/observatory/packages"
RECIPE_VERSION = 1  # raise it when the result of the steps below changes
# Version 0.1 named the same recipe by a digest that depended on the order of the packages: its stacks run from there.
SAME_RECIPE = {"c7a2f025ba46": "4e61a6c3725e"}

PRUNED = (
    *("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/i18n"),
    *("usr/share/lintian", "usr/share/bash-completion", "var/lib/apt", "var/cache"),
)
ORDINARY = Owner(uid=bubblewrap.UID, gid=bubblewrap.GID)
BASE_FILES = {
    "etc/passwd": sandbox_user.passwd(ORDINARY),
    "etc/group": sandbox_user.group(ORDINARY),
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/hostname": "observatory\n",
    "etc/resolv.conf": "",  # the host's is mounted over it
}
LINKS = {"usr/bin/awk": "gawk", "etc/localtime": "/usr/share/zoneinfo/Etc/UTC"}
REQUIRED = ("usr/bin/supervisord", "usr/lib/postgresql/17/bin/postgres", "usr/bin/setpriv", "etc/passwd")

SPACE_NEEDED = 2 * 1024**3  # bytes: 0.8 GB unpacked, 0.25 GB of archives meanwhile, and room for data
LOG_LINES = 15
REMEDIES = {
    errno.EROFS: "Make the checkout writable.",
    errno.EACCES: "Run the command as the owner of the checkout.",
    errno.EPERM: "Run the command as the owner of the checkout.",
}
STAGES = {  # mmdebstrap's line when a stage begins: the step that is reported, and the share of the time before it
    "running apt-get update": ("Reading Debian's package lists", 0.02),
    "downloading packages": ("Downloading Debian packages", 0.1),
    "extracting archives": ("Unpacking Debian packages", 0.2),
    "cleaning package lists": ("Cleaning up", 0.85),
}
CAUSES = {
    "No space left on device": f"the disk is full; free 2 GB, or name a directory of another disk in {VARIABLE}",
    "Could not resolve": "a package mirror cannot be found; check the network and DNS",
    "Unable to connect": "a package mirror cannot be reached; check the network and proxy",
    "Failed to fetch": "a package could not be downloaded; try again, then check the network and proxy",
    "apt cannot handle paths": f"apt cannot use this path; name a directory without double quotes in {VARIABLE}",
    "NO_PUBKEY": "the archive's signature cannot be verified; install a newer debian-archive-keyring",
    "Unable to locate package": "the mirror lacks a package; check which mirror the host's apt is sent to",
}


def rootfs_path(cache: Path, packages: Collection[str]) -> Path:
    """Return where the root filesystem with `packages` is, or will be once `ensure_rootfs` has built it.

    The path is the same whether the checkout's `cache` holds it or links to a shared one, so it may be recorded.
    """
    given = os.environ.get("OBSERVATORY_ROOTFS")
    return Path(given).absolute() if given else cache / f"rootfs-{_recipe_key(packages)}"


def ensure_rootfs(
    cache: Path, packages: Collection[str], *, progress: Progress = lambda _message, _fraction: None
) -> Path:
    """Return the root filesystem with Debian's `packages` in the directory `cache`, after building what is missing.

    Several processes may call this at once, and it repairs what a killed build left. The environment variable
    `OBSERVATORY_ROOTFS` names a ready root filesystem to use instead.

    Raises:
        RootfsError: the build failed (with the last lines of its log and a remedy), or the given one is not usable.
        CacheError: `OBSERVATORY_CACHE_DIR` names a directory that cannot be used.
        SandboxUnavailable: this machine does not let this user run programs from a root filesystem.
    """
    rootfs = rootfs_path(cache, packages)
    if "OBSERVATORY_ROOTFS" in os.environ:
        return _checked(rootfs)
    if _missing(rootfs):
        try:
            with locks.exclusive(cache / "rootfs.lock") as lock:
                if _missing(rootfs):
                    _provide(rootfs, sorted({*SYSTEM_PACKAGES, *packages}), lock, progress)
                    _remove_others(rootfs)
        except OSError as error:
            remedy = REMEDIES.get(error.errno or 0, "It needs 2 GB of disk.")
            raise RootfsError(f"cannot build the root filesystem for {cache}: {error}", remedy=remedy) from error
    mark_used(rootfs)
    return rootfs


def _provide(rootfs: Path, packages: Sequence[str], lock: int, progress: Progress) -> None:
    """Link `rootfs` to a shared one, which is built where it is missing, or build it in the checkout itself."""
    built = shared_directory() / rootfs.name
    if not _may_share(built):
        directory, reason = shared_or(rootfs.parent)
        if reason:
            progress(f"Building a root filesystem for this checkout alone: {reason}", 0.0)
            _build(rootfs, packages, lock, progress)
            return
        with locks.exclusive(directory / "rootfs.lock") as shared_lock:
            if not _may_share(built):
                _build(built, packages, shared_lock, progress)
                remove_unused(built, "rootfs-*", in_use=_in_use)
    _remove(rootfs)
    with replacing(rootfs) as link:
        link.symlink_to(built)


def _may_share(built: Path) -> bool:
    """Return whether a complete root filesystem is there that only this user may write to."""
    return not _missing(built) and belongs_to_this_user(built) and belongs_to_this_user(built.parent)


def package_versions(rootfs: Path) -> dict[str, str]:
    """Return the version of each Debian package in `rootfs`, by name; empty if it was not built here."""
    file = rootfs / VERSIONS_FILE
    lines = file.read_text().splitlines() if file.is_file() else []
    archives = (line.removesuffix(".deb").split("_") for line in lines)
    return {name: version.replace("%3a", ":") for name, version, _architecture in archives}


def _missing(rootfs: Path) -> list[str]:
    """Return what a directory lacks to be a root filesystem: it may be absent, or half removed."""
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


def _recipe_key(packages: Collection[str]) -> str:
    recipe = [RECIPE_VERSION, SUITE, sorted({*SYSTEM_PACKAGES, *packages}), BASE_FILES, LINKS, PRUNED]
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]
    return SAME_RECIPE.get(key, key)


def _build(rootfs: Path, packages: Sequence[str], lock: int, progress: Progress) -> None:
    """Build into a directory of another name and rename it, so that `rootfs` is complete or absent.

    The caller holds `lock`, so that the name need not be unique: the next build removes what a killed one left.
    """
    for abandoned in rootfs.parent.glob("rootfs-*.partial"):
        _remove(abandoned)
    _remove(rootfs)
    partial = rootfs.with_name(f"{rootfs.name}.partial")
    _check_space(rootfs.parent)
    try:
        _extract(partial, packages, lock, progress)
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
            f" Free some space, or name a directory of another disk in {VARIABLE}."
        )


def _extract(partial: Path, packages: Sequence[str], lock: int, progress: Progress) -> None:
    """Run mmdebstrap, which inherits `lock`: no other build starts before it ends, even if this process is killed."""
    progress("Preparing to build the root filesystem", 0.0)
    tool = mmdebstrap.find(partial.parent / "mmdebstrap")
    versions = Path(VERSIONS_FILE)
    hook = f'mkdir -p "$1/{versions.parent}" && cd "$1/var/cache/apt/archives" && ls *.deb >"$1/{versions}"'
    command = [*tool.command, "--mode=chrootless", "--variant=extract", "--format=directory"]
    command += [f"--keyring={tool.keyring}", "--skip=check/chrootless", f"--extract-hook={hook}"]
    command += [f"--include={','.join(packages)}", SUITE, str(partial)]
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
    """Do the work of the maintainer scripts, as far as the daemons need it."""
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
    # Compile now: this tree is read-only for the daemons, and without bytecode each start compiles everything again.
    _run_inside(rootfs, "/usr/bin/python3", "-m", "compileall", "-q", "-j", "0", *COMPILED)


def _run_inside(rootfs: Path, *command: str) -> None:
    _run(bubblewrap.prepare_command(rootfs, command))


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        output = "\n".join((result.stdout + result.stderr).splitlines()[-LOG_LINES:])
        raise RootfsError(f"cannot prepare the root filesystem: {command[0]} failed:\n{output}")


def _remove_others(rootfs: Path) -> None:
    """Remove the checkout's root filesystems of older recipes, and links to them, unless a process runs from one."""
    for other in rootfs.parent.glob("rootfs-*"):
        if other != rootfs and not _in_use(other):
            _remove(other)


def _in_use(rootfs: Path) -> bool:
    """Return whether the root directory of any process that this user may inspect is `rootfs`."""
    import psutil  # noqa: PLC0415 - only where a root filesystem is built

    return any(_is_root(rootfs, pid) for pid in psutil.pids())


def _is_root(rootfs: Path, pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/root").samefile(rootfs)  # psutil does not read a process' root directory
    except OSError:  # the process has ended, or belongs to another user
        return False


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
