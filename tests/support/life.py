"""The life of one stack under crashes: up, changed, stopped, up again, removed; each command a chain of blows.

Owns the order of the commands, the traces written meanwhile, and what must hold between the chains.
"""

from __future__ import annotations

import itertools
import random
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx

from observatory.database.connection import connect, with_database
from observatory.operations.demonstration import spans
from tests.support import crash
from tests.support.checkout import Checkout
from tests.support.ports import free_port

EMBEDDED = ("--engine", "embedded")
UP, DOWN = ("up", *EMBEDDED), ("down", "--yes", *EMBEDDED)
KEEP = ("down", "--keep-data", *EMBEDDED)
STOP_S = 6.0  # about as long as the daemons take to stop
PAUSE_S = 0.2
ENVIRONMENT = "crash"  # of the traces written meanwhile


@dataclass
class Writer:
    """Sends traces one by one while commands come and go, and keeps the ids that the service acknowledged."""

    url: str
    key: str
    checkout: Checkout
    acknowledged: set[str] = field(default_factory=set)
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Writer:
        self._thread = threading.Thread(target=self._write, args=(self.checkout.trusted(),), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _write(self, trusted: Any) -> None:
        with httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, verify=trusted) as client:
            while not self._done.wait(PAUSE_S):
                [item] = spans(1, now=datetime.now(UTC), seed=random.SystemRandom().getrandbits(64))
                try:
                    answer = client.post("/v1/traces", json={"items": [item | {"environment": ENVIRONMENT}]})
                except httpx.HTTPError:
                    continue
                if answer.status_code == httpx.codes.CREATED:
                    self.acknowledged.add(item["trace_id"])


@dataclass(kw_only=True)
class Life:
    """One stack's life; the signals strike in turn; `broken` is what was not as promised, `blows` how many fell."""

    checkout: Checkout
    signals: tuple[str, ...]
    target: str = "command"
    share: int = 1
    seed: int = 0
    broken: list[str] = field(default_factory=list)
    blows: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> Life:
        """Live it to its end."""
        self.begin()
        self.grow()
        self.end()
        return self

    def begin(self) -> None:
        """Bring the stack up."""
        self._chain("up", UP)
        self._settled("up")

    def grow(self) -> None:
        """Change the stack while traces are written, stop it and bring it up again."""
        with Writer(self.checkout.output("service_url"), self.checkout.output("api_key"), self.checkout) as writer:
            self._change()
            self._chain("change", UP)
        self._settled("change")
        self._chain("keep", KEEP, moments=("working", "unsaved"), linger=STOP_S, share=1, only="locks/")
        self._chain("resume", UP)
        self._settled("resume")
        self._count(writer.acknowledged)

    def end(self) -> None:
        """Remove the stack."""
        self._chain("down", DOWN)
        self._gone()

    def _chain(self, name: str, arguments: tuple[str, ...], **choices: Any) -> None:
        given = {"target": self.target, "share": self.share, "seed": self.seed}
        plan = crash.plan_for(self.checkout, name, **{**given, **choices})
        done = crash.Chain(checkout=self.checkout, arguments=arguments, plan=plan, signals=self.signals).run()
        self.broken += done.broken
        self.blows[name], self.seconds[name] = len(done.blows), done.seconds

    def _change(self) -> None:
        """Change what takes updates, restarts, another port, more instances."""
        # From the single ports: a block might have those of the further instances, which do not listen yet.
        moved = {name: free_port() for name in ("valkey", "prometheus", "postgres")}
        ports = self.checkout.ports() | moved
        self.checkout.configure(database={"shared_buffers_mb": 64}, fleets={"size": 2}, ports=ports)

    def _settled(self, when: str) -> None:
        """Check that `up` finds the stack healthy, nothing to do and no half files.

        The last command of the chain before was undisturbed.
        """
        found = self.checkout.json(*UP)
        if not found["status"]["healthy"]:
            self.broken.append(f"after {when}: not healthy")
        if (summary := found["summary"]) != {"same": summary.get("same")}:
            self.broken.append(f"after {when}: `up` twice, and the second changes {summary}")
        if left := crash.leftovers(self.checkout):
            self.broken.append(f"after {when}: half written {left}")
        if len(crash.postmasters(self.checkout)) != 1:
            self.broken.append(f"after {when}: postmasters {crash.postmasters(self.checkout)}")

    def _count(self, acknowledged: set[str]) -> None:
        """Check that every trace that was acknowledged is there, and those of the demonstration."""
        url = with_database(self.checkout.output("admin_database_url"), "observatory")
        query = "SELECT trace_id FROM llm_traces WHERE environment = %s"
        with connect(url, purpose="test") as connection:
            rows = connection.execute(query, [ENVIRONMENT]).fetchall()
            shown = connection.execute("SELECT count(*) FROM llm_traces WHERE environment = 'demonstration'").fetchone()
        lost = acknowledged - {str(trace) for (trace,) in rows}
        if lost or not acknowledged:
            self.broken.append(f"{len(lost)} of {len(acknowledged)} acknowledged traces are lost: {sorted(lost)[:3]}")
        if not shown or shown[0] < 1000:
            self.broken.append(f"the demonstration's traces: {shown}")

    def _gone(self) -> None:
        """Check that nothing is left: no process, no data, no state."""
        if left := self.checkout.processes():
            self.broken.append(f"after down: processes {left}")
        home = self.checkout.root / ".observatory"
        kept = list(itertools.chain(home.glob("stacks/*"), home.glob("stacks/.*"), home.glob("rollout/*")))
        if kept or crash.checkpoint(self.checkout).exists():
            self.broken.append(f"after down: {kept}")
