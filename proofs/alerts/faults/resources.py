"""Faults of the machine's resources, each bounded, and of the cache."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import redis

from proofs.alerts.faults.means import control_group, fires, repeated, stopped
from proofs.alerts.faults.sessions import wrong_passwords
from proofs.alerts.history import backfill
from proofs.alerts.monitored import INTERVAL_S, SCOPE, Monitored
from proofs.alerts.round import PATIENCE_S, Fault
from tests.support.small_disk import fill, total

CRITICAL_LEFT, WARNING_LEFT, TREND_LEFT = 0.1, 0.25, 0.35  # of the disk
HISTORY_S = 6 * 3600.0
GROUP_BYTES, MEMORY_LIMITS = 64 * 2**20, ("memory.limit_in_bytes", "memory.max")  # of control groups 1 and 2
EATER = f"bytearray({4 * GROUP_BYTES})"
VALUE = b"x" * 2**20
KNOWN, LOOKUPS = "observatory-proof", 100  # a key that the cache has, and how often it is read at once


@contextlib.contextmanager
def _flooded(stack: Monitored, left: float) -> Iterator[None]:
    file = stack.checkout.home / "log/storage-blue-1.log.1"
    fill(file, leave=int(left * total(stack.checkout.home)))
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_nearly_full(stack: Monitored) -> Iterator[None]:
    """Fill the disk with an old log, but for a tenth."""
    with _flooded(stack, CRITICAL_LEFT):
        yield


@contextlib.contextmanager
def disk_filling(stack: Monitored) -> Iterator[None]:
    """Fill the disk with an old log, but for a quarter."""
    with _flooded(stack, WARNING_LEFT):
        yield


@contextlib.contextmanager
def disk_filling_for_hours(stack: Monitored) -> Iterator[None]:
    """Fill the disk with an old log but for a third, with a history of six hours in which it has filled steadily."""
    [live] = stack.query(SCOPE.select("node_filesystem_avail_bytes"))
    size, now = total(stack.checkout.home), time.time()
    with _flooded(stack, TREND_LEFT):
        steps = int(HISTORY_S / INTERVAL_S)
        fall = (1 - TREND_LEFT) * size / steps
        samples = ((now - HISTORY_S + step * INTERVAL_S, size - step * fall) for step in range(steps))
        backfill(stack, "node_filesystem_avail_bytes", live, samples)
        yield


@contextlib.contextmanager
def process_killed_for_memory(stack: Monitored) -> Iterator[None]:
    """Let the kernel kill a process that needs more memory than its control group has."""
    with control_group("memory", f"observatory-proof-{stack.ports['postgres']}") as group:
        limit = next(group / name for name in MEMORY_LIMITS if (group / name).exists())
        limit.write_text(str(GROUP_BYTES))
        enter = f"echo $$ > {group}/cgroup.procs && exec {sys.executable} -c '{EATER}'"
        done = subprocess.run(["sh", "-c", enter], check=False)
        if done.returncode == 0:
            raise RuntimeError("the kernel has killed no process")
    yield


@contextlib.contextmanager
def _cache(stack: Monitored) -> Iterator[redis.Redis]:
    lines = (stack.checkout.home / "etc/valkey/password.conf").read_text().splitlines()
    password = next(line.split()[1] for line in lines if line.startswith("requirepass"))
    with contextlib.closing(redis.Redis(port=stack.ports["valkey"], password=password)) as cache:
        yield cache


@contextlib.contextmanager
def cache_full(stack: Monitored) -> Iterator[None]:
    """Fill the cache with keys that nothing reads, until it removes others."""
    with _cache(stack) as cache, repeated(lambda: cache.set(os.urandom(8), VALUE)):
        yield


@contextlib.contextmanager
def random_keys_read(stack: Monitored) -> Iterator[None]:
    """Read keys that the cache does not have until the alert is sent, then one that it has.

    A warning fires meanwhile: an informational alert is not sent alone.
    """
    name, begun = "StorageCacheHitRateLow", time.time()
    with wrong_passwords(stack), _cache(stack) as cache:
        fires(stack, "StorageAuthFailures")
        with repeated(lambda: cache.get(os.urandom(8))):
            stack.wait_for(lambda: stack.received(name, since=begun), f"{name} to be sent", timeout_s=PATIENCE_S)
        cache.set(KNOWN, b"", ex=int(HISTORY_S))
        with repeated(lambda: cache.mget([KNOWN] * LOOKUPS)):
            yield


RESOURCES = (
    Fault(alert="StorageDiskCritical", what="an old log fills 90 % of a small filesystem", inject=disk_nearly_full),
    Fault(alert="StorageDiskWarning", what="an old log fills 75 % of a small filesystem", inject=disk_filling),
    Fault(
        alert="StorageDiskFullIn4Days",
        what="an old log fills 65 % of a small filesystem, with a history of six hours (backfilled blocks)",
        inject=disk_filling_for_hours,
        remedy_of="StorageDiskCritical",
    ),
    Fault(
        alert="StorageMemoryPressure",
        what="the kernel kills a process in a control group of 64 MiB",
        inject=process_killed_for_memory,
    ),
    Fault(alert="StorageCacheDown", what="the cache is stopped", inject=stopped("valkey")),
    Fault(alert="StorageCacheMemoryHigh", what="a client fills the cache", inject=cache_full, ended_by_hand=True),
    Fault(
        alert="StorageCacheHitRateLow",
        what="a client reads random keys until the alert is sent, then a key that the cache has, while logins fail",
        inject=random_keys_read,
    ),
)
