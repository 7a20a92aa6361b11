"""Deployments under faults: drawn at random in a simulated stack, and killed by SIGKILL on a real one."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
from hypothesis import HealthCheck, Phase, given, settings

from observatory.database import connect
from observatory.database.advisory_locks import DEPLOYMENT_LOCK, LOCK_CLASS
from observatory.database.connection import with_database
from observatory.documents.journal import Entry, entries
from observatory.documents.rollout import ENDED, TOTAL_WEIGHT
from observatory.nodes import Paths
from observatory.nodes.haproxy import runtime_socket, servers_file
from observatory.platforms.local.balancer import HaproxyBalancer
from observatory.runtime import LiveServers, Sandbox
from observatory.settings import FleetName
from observatory.workspace import Workspace
from proofs.record import Outcome
from tests.delivery.faults import SEQUENCES, Sequence, ends_decided
from tests.support.checkout import SOURCE, UP_TIMEOUT_S, Checkout
from tests.support.releases import variant

FAULTS = (
    "After any sequence of errors, kills, interrupts, takeovers and metrics: no fleet with traffic ever has less than "
    "its minimum of instances, the deployment ends promoted or rolled back, and the stack matches the rollout document."
)
KILLS = (
    "After `deploy application` is killed by SIGKILL at any moment, the deployment lock is free within a second, and "
    "the same command or `rollback` ends promoted or rolled back, with balancer and instances as in the document."
)
STRATEGIES = ("blue-green", "canary", "rolling")
EMBEDDED = ("--engine", "embedded")
LOCK_FREE_S = 1.0
BAKE_S, SIZE = 4, 2
HELD = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = %s AND objid = %s"
OLD, NEW = "v0.1.0", "v0.2.0"
ENTRIES = {"blue-green": 7, "canary": 10, "rolling": 16}  # of a deployment in the journal, roughly
LONGEST_LINGER_S = 3.0


def prove_faults(rounds: int, share: int) -> Outcome:
    """Run `rounds` sequences of faults, times `share`."""
    outcome, begun, seen = Outcome(promise=FAULTS), time.monotonic(), Counter[str]()

    @given(drawn=SEQUENCES)
    @settings(
        max_examples=rounds * share,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    def every(drawn: Sequence) -> None:
        seen[f"{drawn.strategy}: {ends_decided(drawn)}"] += 1

    try:
        every()
    except Exception as error:
        outcome.failures.append(f"{error!r} {getattr(error, '__notes__', '')}")
    outcome.passed, outcome.failed = seen.total(), len(outcome.failures)
    outcome.counts, outcome.seconds = dict(sorted(seen.items())), time.monotonic() - begun
    return outcome


def prove_kills(rounds: int, share: int) -> Outcome:
    """Kill `rounds` deployments, times `share`, on one real stack, each at another moment."""
    outcome, begun, blows = Outcome(promise=KILLS), time.monotonic(), Counter[str]()
    slowest = 0.0
    with tempfile.TemporaryDirectory(prefix="observatory-kill-") as directory, a_victim(Path(directory)) as victim:
        for number in range(rounds * share):
            blow = Blow.drawn(number)
            struck = victim.strike(blow)
            slowest = max(slowest, struck.lock_s)
            blows[f"{blow.strategy}, {struck.moment}, then {blow.recover}"] += 1
            outcome.failures += [f"round {number}, {blow}, {struck.moment}: {problem}" for problem in struck.broken]
            outcome.failed += bool(struck.broken)
    outcome.passed = blows.total() - outcome.failed
    outcome.counts = {"longest until the lock was free, s": round(slowest, 2), "kills": dict(sorted(blows.items()))}
    outcome.seconds = time.monotonic() - begun
    return outcome


@dataclass(frozen=True, kw_only=True)
class Blow:
    """When a deployment is killed, and how an operator recovers.

    Attributes:
        strategy: of the deployment.
        entry: number of the journal's entry after which the blow falls.
        linger: seconds from the entry to the blow.
        recover: `rerun` or `rollback`.
    """

    strategy: str
    entry: int
    linger: float
    recover: str

    @classmethod
    def drawn(cls, seed: int) -> Blow:
        """Draw a blow; strategies and ways to recover alternate."""
        draw = random.Random(seed)  # noqa: S311 - no secret
        strategy = STRATEGIES[seed % len(STRATEGIES)]
        return cls(
            strategy=strategy,
            entry=draw.randrange(ENTRIES[strategy]),
            linger=draw.choice((0.0, draw.uniform(0, LONGEST_LINGER_S))),
            recover=("rerun", "rollback")[seed % 2],
        )


@dataclass(kw_only=True)
class Struck:
    """The result of a kill: the last event before it, seconds until the lock was free, and broken promises."""

    moment: str
    lock_s: float
    broken: list[str]


@dataclass(frozen=True, kw_only=True)
class Victim:
    """A stack whose deployments are killed; `conninfo` is its superuser's, without the pooler."""

    checkout: Checkout
    conninfo: str

    def strike(self, blow: Blow) -> Struck:
        """Kill one deployment, recover, and check the result."""
        live = self.document[self.active]["version"]
        wanted = NEW if live == OLD else OLD
        deploy = ("deploy", "application", "--version", wanted, "--strategy", blow.strategy, "--bake", str(BAKE_S))
        before = self.deployment
        moment, lock_s = self._kill(deploy, blow)
        broken = [f"the lock was free after {lock_s:.1f} s only"] if lock_s > LOCK_FREE_S else []
        if blow.recover == "rerun":
            broken += self.run(*deploy)
        elif self.deployment["status"] not in ENDED:
            broken += self.run("rollback", "--method", "blue-green", "--yes")
        begun = self.deployment.get("id") != before.get("id")
        expected = wanted if begun and self.deployment["status"] == "promoted" else live
        return Struck(moment=moment, lock_s=lock_s, broken=[*broken, *self.apart(expected)])

    def _kill(self, deploy: tuple[str, ...], blow: Blow) -> tuple[str, float]:
        """Kill the command; return the last event before it, and the seconds until the lock was free."""
        begun, deadline = len(self._noted()), time.monotonic() + UP_TIMEOUT_S
        with connect(self.conninfo, purpose="proof") as connection:
            process = self.checkout.start(*deploy, *EMBEDDED)
            while len(self._noted()) <= begun + blow.entry and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(blow.linger)
            lock_s = killed(process, connection)
        process.communicate()
        return self._noted()[-1].event, lock_s

    def apart(self, version: str) -> Iterator[str]:
        """Yield how the stack differs from the document before an `up` could repair it, and the errors of `up`."""
        document, active = self.document, self.active
        if self.deployment["status"] not in ENDED:
            yield f"the deployment is {self.deployment['status']}"
        if (document[active]["version"], document[active]["rolling"]) != (version, None):
            yield f"{active} is {document[active]}, not {version}"
        weights, out = HaproxyBalancer(self._sandbox).weights(), self._servers.out()
        if weights[active] != TOTAL_WEIGHT or out:
            yield f"the balancer has {weights}, draining {sorted(out)}"
        first = self.checkout.ports()[active]
        answers = {
            httpx.get(f"http://127.0.0.1:{port}/health").json()["version"] for port in range(first, first + SIZE)
        }
        if answers != {version}:
            yield f"{active}'s instances run {answers}, not {version}"
        if not self.checkout.json("up", *EMBEDDED)["status"]["healthy"]:
            yield "the stack is not healthy after `up`"

    def run(self, *arguments: str) -> list[str]:
        """Run the command; return its error if it fails."""
        try:
            self.checkout.run(*arguments, *EMBEDDED)
        except AssertionError as error:
            return [str(error)]
        return []

    @property
    def document(self) -> Any:
        """The rollout document as JSON."""
        return json.loads((self.checkout.root / ".observatory/rollout/local.json").read_text())

    @property
    def deployment(self) -> dict[str, Any]:
        """The last deployment; a promoted one where there is none."""
        return self.document["deployment"] or {"status": "promoted"}

    @property
    def active(self) -> FleetName:
        """The fleet that has the traffic."""
        return "green" if self.document["green"]["weight"] else "blue"

    @property
    def _sandbox(self) -> Sandbox:
        return Sandbox(self.checkout.home, Path(self.checkout.environment["OBSERVATORY_ROOTFS"]))

    @property
    def _servers(self) -> LiveServers:
        return LiveServers(sandbox=self._sandbox, file=servers_file(Paths()), socket=runtime_socket(Paths()))

    def _noted(self) -> list[Entry]:
        return list(entries(self.checkout.root / ".observatory/rollout/local.journal.jsonl"))


def killed(process: subprocess.Popen[str], connection: psycopg.Connection) -> float:
    """Kill a command; return the seconds until the deployment lock was free."""
    process.send_signal(signal.SIGKILL)
    struck = time.monotonic()
    while connection.execute(HELD, [LOCK_CLASS, DEPLOYMENT_LOCK.key]).fetchone() != (0,):
        time.sleep(0.01)
    return time.monotonic() - struck


@contextlib.contextmanager
def a_victim(directory: Path) -> Iterator[Victim]:
    """Yield a stack with two instances in each fleet and two versions in its store."""
    root = directory / "checkout"
    root.mkdir()
    checkout = Checkout.copy(root, rootfs=Workspace(root=SOURCE, stack="local").ensure_rootfs())
    gates = {"minimum_requests": 1, "deadline_s": 60, "interval_s": 2}
    checkout.configure(fleets={"size": SIZE}, delivery={"canary_steps": [50, 100], "gates": gates})
    try:
        checkout.run("up", *EMBEDDED)
        first = root / f".observatory/releases/{OLD}.tar.gz"
        key = (root / ".observatory/signing-key.pem").read_text()
        checkout.run("release", "add", str(variant(first, NEW, root / "made", key=key)))
        conninfo = with_database(checkout.output("admin_database_url"), "observatory")
        yield Victim(checkout=checkout, conninfo=conninfo)
    finally:
        checkout.kill_all()
