"""Ways out of a deployment that went wrong, on a real stack: traffic is on a healthy fleet soon, and without a hand."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from observatory.database import connect
from observatory.database.advisory_locks import DEPLOYMENT_LOCK, LOCK_CLASS, session_lock
from observatory.documents.rollout import TOTAL_WEIGHT
from observatory.errors import REFUSED
from proofs.delivery import EMBEDDED, NEW, OLD, Victim, a_victim
from proofs.kept import Kept
from proofs.record import Outcome
from tests.support.checkout import UP_TIMEOUT_S
from tests.support.delivery import line
from tests.support.releases import variant
from tests.support.small_disk import fill, mounted

PROMISE = (
    "Whatever is in the way of a rollback (a version that holds all connections, a frozen fleet, a full disk, a "
    "damaged rollout document, a lost deployment lock), the traffic is on a healthy fleet within 10 s of the command, "
    "without a hand, and an `up` afterwards finds a healthy stack."
)
LIMIT_S = 10.0
HOLDING = "v0.3.0"
FAILED = 3  # writes, after which no connection is left
PAUSE_S, ENOUGH = 0.1, 10  # responses in a row that count as traffic on a healthy fleet
LOST = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objid = %s"
FAULTS = ("connections", "frozen", "damaged_document", "lost_lock", "full_disk")
ROLLBACK = ("rollback", "--method", "blue-green", "--emergency")


@dataclass(kw_only=True)
class Way:
    """One stack with its deployments, and the faults that they meet.

    Attributes:
        victim: the stack.
        disk: the directory of the rollout document, a filesystem of its own; None where it cannot be one.
        broken: promises that were broken.
    """

    victim: Victim
    disk: Path | None
    broken: list[str] = field(default_factory=list)

    def meet(self, fault: str) -> tuple[float, list[str]]:
        """Meet a fault; return the seconds until the traffic was on a healthy fleet, and what was not as promised."""
        self.broken.clear()
        seconds: float = getattr(self, fault)()
        if seconds > LIMIT_S:
            self.broken.append(f"traffic was on a healthy fleet after {seconds:.1f} s")
        self.settle()
        return seconds, list(self.broken)

    def connections(self) -> float:
        """Roll back a version that holds all connections outside of its pool."""
        with self._deploying(HOLDING, "blue-green", weight=TOTAL_WEIGHT):
            with self._client() as client:
                self._write_until_held(client)
            return self._timed(lambda: self._run(*ROLLBACK))

    def _write_until_held(self, client: httpx.Client) -> None:
        """Write until writes fail: the version, whose fault begins late, holds all connections then."""
        failed, until = 0, time.monotonic() + UP_TIMEOUT_S
        while failed < FAILED and time.monotonic() < until:
            try:
                failed += client.post("/v1/logs", json={"items": [line()]}).is_server_error
            except httpx.HTTPError:
                failed += 1
        if failed < FAILED:
            self.broken.append("the version never held all connections")

    def frozen(self) -> float:
        """Promote, freeze the previous fleet, and roll back after the refusal and an `up`."""
        self._run("deploy", "application", "--version", NEW, "--strategy", "blue-green", "--bake", "0", *EMBEDDED)
        for pid in self._instances("blue"):
            os.kill(pid, signal.SIGSTOP)
        refused = self.victim.checkout.start(*ROLLBACK)
        refused.communicate(timeout=UP_TIMEOUT_S)
        if refused.returncode != REFUSED or self.victim.document["green"]["weight"] != TOTAL_WEIGHT:
            self.broken.append(f"a rollback to a frozen fleet ended with {refused.returncode}")
        self._run("up", *EMBEDDED)
        return self._timed(lambda: self._run(*ROLLBACK))

    def full_disk(self) -> float:
        """Roll back while the disk of the rollout document is full."""
        assert self.disk  # noqa: S101 - of the faults that are drawn
        with self._deploying(NEW, "canary", weight=50):
            filler = self.disk / "filler"
            fill(filler)
            try:
                return self._timed(lambda: self._run(*ROLLBACK))
            finally:
                filler.unlink()

    def damaged_document(self) -> float:
        """Abort while the rollout document is damaged."""
        with self._deploying(NEW, "canary", weight=50):
            self._document.write_text("{")
            return self._timed(lambda: self._run("rollout", "abort"))

    def lost_lock(self) -> float:
        """Take the deployment lock from a deployment, which rolls itself back."""
        with self._deploying(NEW, "canary", weight=50), connect(self.victim.conninfo, purpose="proof") as connection:
            connection.execute(LOST, [LOCK_CLASS, DEPLOYMENT_LOCK.key])
            with session_lock(connection, DEPLOYMENT_LOCK, wait_s=LIMIT_S):
                return self._timed(lambda: None)

    def settle(self) -> None:
        """Check that `up` finds a healthy stack with all traffic on blue."""
        done = self.victim.checkout.json("up", *EMBEDDED)
        if not done["status"]["healthy"] or self.victim.document["blue"]["weight"] != TOTAL_WEIGHT:
            self.broken.append(f"after `up`: {done['summary']}, {self.victim.document['blue']}")

    @property
    def _document(self) -> Path:
        return self.victim.checkout.root / ".observatory/rollout/local.json"

    @contextlib.contextmanager
    def _deploying(self, version: str, strategy: str, *, weight: int) -> Iterator[None]:
        """Deploy a version until it has a traffic weight; its command has ended at the end of the block."""
        canary = ("--canary-percentage", str(weight)) if strategy == "canary" else ()
        wanted = ("--version", version, "--strategy", strategy, *canary, "--bake", "600", "--skip-tests", *EMBEDDED)
        process, deadline = (
            self.victim.checkout.start("deploy", "application", *wanted),
            time.monotonic() + UP_TIMEOUT_S,
        )
        while self.victim.document["green"]["weight"] != weight:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{version} never had {weight} %: {process.communicate()}")
            time.sleep(PAUSE_S)
        try:
            yield
        finally:
            process.communicate(timeout=UP_TIMEOUT_S)

    def _timed(self, command: Callable[[], None]) -> float:
        """Run a command; return the seconds from its start until blue has all traffic and every response is right."""
        running, right = threading.Thread(target=command), 0
        with self._client() as client:
            started = right_since = time.monotonic()
            running.start()
            while right < ENOUGH and time.monotonic() < started + UP_TIMEOUT_S:
                right = right + 1 if self._is_right(client) else 0
                right_since = right_since if right else time.monotonic()
                time.sleep(PAUSE_S)
        running.join()
        return right_since - started if right == ENOUGH else UP_TIMEOUT_S

    def _is_right(self, client: httpx.Client) -> bool:
        try:
            answer = client.get("/v1/traces?limit=1")
        except httpx.HTTPError:
            return False
        return answer.is_success and answer.headers.get("X-Observatory-Version") == OLD

    def _client(self) -> httpx.Client:
        checkout = self.victim.checkout
        headers = {"Authorization": f"Bearer {checkout.output('api_key')}"}
        return httpx.Client(
            base_url=checkout.output("service_url"), headers=headers, verify=checkout.trusted(), timeout=2
        )

    def _instances(self, fleet: str) -> list[int]:
        daemons = self.victim.checkout.json("status")["daemons"]
        return [daemon["pid"] for daemon in daemons if daemon["name"].startswith(f"storage-{fleet}-")]

    def _run(self, *arguments: str) -> None:
        try:
            self.victim.checkout.run(*arguments)
        except AssertionError as error:
            self.broken.append(str(error))


def prove(rounds: int, share: int, kept: Kept) -> Outcome:
    """Meet each fault `rounds` times; `share` tries one of so many only."""
    outcome, begun = Outcome(promise=PROMISE), time.monotonic()
    slowest, met = Counter[str](), Counter[str]()
    for case, (name, seconds, broken) in _met([(n, name) for n in range(rounds) for name in FAULTS][::share], kept):
        met[name] += 1
        slowest[name] = max(slowest[name], round(1000 * seconds))
        outcome.failures += [f"{case}: {problem}" for problem in broken]
        outcome.failed += bool(broken)
        print(f"{case}: {seconds:.2f} s {broken or ''}", flush=True)
    outcome.passed = met.total() - outcome.failed
    outcome.counts = {
        "commits": kept.commits,
        "faults": dict(sorted(met.items())),
        "longest, ms": dict(sorted(slowest.items())),
    }
    outcome.seconds = time.monotonic() - begun
    return outcome


def _met(rounds: Sequence[tuple[int, str]], kept: Kept) -> Iterator[tuple[str, tuple[str, float, list[str]]]]:
    """Meet the fault of each round that an earlier run has not kept; yield its name, its seconds and what was wrong."""
    cases = [(f"{name} {number}", name) for number, name in rounds]
    for case, _ in cases:
        if found := kept.find(case):
            yield case, found
    with tempfile.TemporaryDirectory(prefix="observatory-ways-out-") as directory, _a_way(Path(directory)) as way:
        for case, name in cases:
            if kept.find(case) or (name == "full_disk" and way.disk is None):
                continue
            seconds, broken = way.meet(name)
            kept.add(case, [name, seconds, broken])
            yield case, (name, seconds, broken)


@contextlib.contextmanager
def _a_way(directory: Path) -> Iterator[Way]:
    """Yield a stack whose rollout document is on a small disk, with a version that holds connections in its store."""
    with a_victim(directory) as victim:
        root = victim.checkout.root
        first, key = root / f".observatory/releases/{OLD}.tar.gz", (root / ".observatory/signing-key.pem").read_text()
        held = variant(first, HOLDING, root / "made", key=key, fault="holding-connections")
        victim.checkout.run("release", "add", str(held))
        rollout, kept = root / ".observatory/rollout", root / "rollout-kept"
        shutil.copytree(rollout, kept)
        with mounted(rollout, "2m") as problem:
            if not problem:
                shutil.copytree(kept, rollout, dirs_exist_ok=True)
            yield Way(victim=victim, disk=None if problem else rollout)
